"""How time and memory of Weft grow: one curve for each thing that can be large.

A curve is a name, what varies, its values, and what is held. Its points are visited up and down in
turn, round after round, each built anew, so that a disturbance does not bend one point only. A
reading is a step, after one that warms up; peak memory counts all that is built for a point, model
included.

The exponent of a curve is the slope of log time by log value over the upper half of its values:
1 where time is in proportion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import growth_data, growth_points, report
from benchmarks.device import Device, Memory
from benchmarks.growth_points import Setting, Steps
from benchmarks.harness import Spread
from benchmarks.race import Benchmark, Options, tell

PAGE = Path(__file__).parent.parent / "docs" / "growth.md"
MIB = 2**20

Build = Callable[[int, Setting], Steps]
"""Everything for a point, ready to take steps."""


@dataclass(frozen=True)
class Axis:
    """One thing that grows."""

    name: str
    varies: str
    values: tuple[int, ...]
    held: str
    build: Build
    unit: str
    """What time is divided by: `token` for seconds a token."""
    units: Callable[[int], int] = lambda value: value
    """How many of them a point has."""
    once: bool = False
    """A point takes so long that one reading a round is all."""
    rare: int | None = None
    """From this value on even one round is all."""

    @property
    def label(self) -> str:
        """As a benchmark."""
        return f"growth_{self.name}"


@dataclass(frozen=True)
class Point:
    """What was read at one value."""

    value: int
    units: int
    seconds: tuple[float, ...]
    peak_bytes: tuple[int, ...]

    @property
    def time(self) -> Spread:
        """Seconds of a step."""
        return Spread.of(self.seconds)

    @property
    def memory(self) -> float:
        """Bytes at the peak."""
        return float(np.median(self.peak_bytes))


@dataclass(frozen=True)
class Growth(report.Report):
    """A curve that was measured."""

    varies: str
    unit: str
    points: tuple[Point, ...]

    @property
    def tables(self) -> list[report.Rows]:
        """One row a value."""
        head = [self.varies, "seconds", f"ms a {self.unit}", "peak MiB"]
        return [[head, *map(_row, self.points)]]

    @property
    def notes(self) -> list[str]:
        """The exponents."""
        points = self.points
        time = exponent([(p.value, p.time.median) for p in points])
        memory = exponent([(p.value, p.memory) for p in points])
        return [f"exponents over the upper half: time {time:.2f}, memory {memory:.2f}"]


def exponent(curve: Sequence[tuple[float, float]]) -> float:
    """The slope of log y by log x over the upper half of the points, at least two."""
    upper = np.log(np.array(curve[min(len(curve) // 2, len(curve) - 2) :]))
    return float(np.polyfit(upper[:, 0], upper[:, 1], 1)[0])


def measured(axis: Axis, options: Options) -> Growth:
    """All points of a curve."""
    load, setting = report.load(), Setting(options.quick, options.device)
    values = axis.values[:2] if options.quick else axis.values
    steps = 1 if axis.once else options.steps
    seconds: dict[int, list[float]] = {value: [] for value in values}
    peaks: dict[int, list[int]] = {value: [] for value in values}
    for number in range(options.rounds):
        for value in values if number % 2 == 0 else reversed(values):
            if number and axis.rare is not None and value >= axis.rare:
                continue
            tell(f"round {number + 1}/{options.rounds}: {axis.varies} {value:,}")
            times, memory = _visited(axis, value, setting, steps, options.device)
            seconds[value] += times
            peaks[value].append(memory.peak_bytes - memory.baseline_bytes)
    what = f"{axis.held}; {steps} timed steps in each of {options.rounds} rounds"
    return Growth(
        **report.origin(axis.label, what, load, options.device),
        varies=axis.varies,
        unit=axis.unit,
        points=tuple(
            Point(value, axis.units(value), tuple(seconds[value]), tuple(peaks[value]))
            for value in values
        ),
    )


def _visited(
    axis: Axis, value: int, setting: Setting, steps: int, device: Device
) -> tuple[list[float], Memory]:
    with device.memory() as memory:
        trace = axis.build(value, setting)(steps if axis.once else steps + 1)
    times = trace.seconds if axis.once else trace.seconds[1:]
    return list(times), trace.memory or memory


def _row(point: Point) -> list[str]:
    time = point.time
    return [
        f"{point.value:,}",
        f"{time.median:.3g} ({time.low:.3g}-{time.high:.3g})",
        f"{time.median / point.units * 1e3:.3g}",
        f"{point.memory / MIB:,.0f}",
    ]


def _powers(first: int, last: int, factor: int = 2) -> tuple[int, ...]:
    values = [first]
    while values[-1] * factor <= last:
        values.append(values[-1] * factor)
    return tuple(values)


AXES = (
    Axis(
        "length",
        "tokens of a row",
        _powers(64, 2048),
        f"SFT step of {growth_points.TOKENS:,} tokens in rows of equal length, half of each "
        f"supervised; {growth_points.MODEL}",
        growth_points.of_length,
        "token",
        lambda value: growth_points.TOKENS,
    ),
    Axis(
        "rows",
        "tokens of each of 4 rows",
        _powers(64, 2048),
        f"SFT step, half of each row supervised; {growth_points.MODEL}",
        growth_points.of_long_rows,
        "token",
        lambda value: 4 * value,
    ),
    Axis(
        "tokens",
        "tokens of a batch",
        _powers(64, 8192),
        f"SFT step, rows of 64 tokens, half of each supervised; {growth_points.MODEL}",
        growth_points.of_tokens,
        "token",
    ),
    Axis(
        "rank",
        "rank",
        _powers(1, 256),
        f"SFT step of 1,024 tokens; {growth_points.MODEL}",
        growth_points.of_rank,
        "step",
        lambda value: 1,
    ),
    Axis(
        "members",
        "members of a forward",
        _powers(1, 64),
        f"losses of each member on the same 4 rows of 32 tokens; {growth_points.MODEL}",
        growth_points.of_members,
        "member",
    ),
    Axis(
        "at_once",
        f"members of a forward, of {growth_points.ALL}",
        _powers(1, growth_points.ALL),
        f"losses of {growth_points.ALL} members on the same 4 rows of 65 tokens, 256 of which are "
        f"read, in as many forwards as it takes; {growth_points.MODEL}",
        growth_points.of_members_at_once,
        "member",
        lambda value: growth_points.ALL,
    ),
    Axis(
        "members_decode",
        "members that speak",
        _powers(1, 64),
        f"each goes on from the same 4 prompts of 16 tokens, 32 new tokens; {growth_points.MODEL}",
        growth_points.of_speakers,
        "member",
    ),
    Axis(
        "directions",
        "directions of a MeZO step",
        _powers(1, 64),
        f"two-sided; {growth_points.MEZO.what}; 16 rows of about 25 tokens",
        growth_points.of_directions,
        "direction",
    ),
    Axis(
        "stack",
        "commits of rank 1 below",
        (1, 4, 16, 64, 125, 250, 500),
        f"boosted SFT step of 1,024 tokens, rank 1, commits as a stack; {growth_points.MODEL}",
        growth_points.of_stack,
        "step",
        lambda value: 1,
    ),
    Axis(
        "merged",
        "commits of rank 1 below",
        (1, 4, 16, 64, 125, 250, 500),
        f"the same with commits merged into the weights; {growth_points.MODEL}",
        growth_points.of_merged,
        "step",
        lambda value: 1,
    ),
    Axis(
        "population",
        "members of a population",
        _powers(2, 64),
        "a generation of weft/tiny: adapters made from noise, 4 countdown prompts continued by 16 "
        "tokens, and graded; LoRA rank 8 on all linear layers",
        growth_points.of_population,
        "completion",
        lambda value: 4 * (value + 1),
    ),
    Axis(
        "data",
        "rows of a jsonl file",
        (1_000, 10_000, 100_000, 1_000_000),
        "what `weft train` does with data before and at its first step, in a process of its own: "
        "read, render, tokenise, split, fingerprint, draw a batch; prompts and responses of 12 "
        "words each, tokenizer of weft/tiny",
        growth_data.of_rows,
        "row",
        once=True,
        rare=1_000_000,
    ),
    Axis(
        "vocabulary",
        "vocabulary",
        _powers(1024, 262_144, 4),
        f"SFT step of 512 tokens, half of each row supervised; {growth_points.MODEL}",
        growth_points.of_vocabulary,
        "step",
        lambda value: 1,
    ),
    Axis(
        "vocabulary_decode",
        "vocabulary",
        _powers(1024, 262_144, 4),
        f"8 prompts of 16 tokens, 8 new tokens each, temperature 0.05, top-p 0.9; "
        f"{growth_points.MODEL}",
        growth_points.of_spoken_vocabulary,
        "token",
        lambda value: 8 * 8,
    ),
)


def benchmark(axis: Axis) -> Benchmark:
    """A curve as a benchmark."""
    only_cpu = "data is read by the processor" if axis.once else None
    return Benchmark(axis.label, lambda options: measured(axis, options), PAGE, only_cpu)


BENCHMARKS = tuple(map(benchmark, AXES))
