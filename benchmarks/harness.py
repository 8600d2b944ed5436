"""Contenders measured side by side: alternating rounds, warm-up, medians, peak memory.

A contender is built, runs the same batches as every other contender and is dropped, once a round,
in one process. What disturbs the machine for longer than a round disturbs them all, and a ratio is
taken within a round before the median over rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.device import CPU, Device, Memory
from weft.core.batch import Batch


@dataclass(frozen=True)
class Trace:
    """What a contender reports of the batches it ran."""

    seconds: tuple[float, ...]
    """One entry a step."""
    results: tuple[float, ...]
    """Numbers that must be everyone's, the first of them compared: losses, sums of tokens."""
    memory: Memory | None = None
    """Of a contender that runs in a process of its own."""


Run = Callable[[Sequence[Batch]], Trace]


@dataclass(frozen=True)
class Contender:
    """A name, a line that says what it is, and how to build it. Building is not timed."""

    name: str
    what: str
    build: Callable[[], Run]
    most: int | None = None
    """Timed steps a round, of one that takes very long."""


@dataclass(frozen=True)
class Round:
    """One contender's timed steps of one round."""

    seconds: tuple[float, ...]
    tokens: int
    first_result: float
    baseline_bytes: int
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens that count: padding is work, but nobody's goal."""
        return self.tokens / sum(self.seconds)


@dataclass(frozen=True)
class Measurement:
    """All rounds of one contender."""

    contender: str
    what: str
    rounds: tuple[Round, ...]

    @property
    def tokens_per_second(self) -> Spread:
        """Tokens that count, a second, over rounds."""
        return Spread.of([r.tokens_per_second for r in self.rounds])

    @property
    def step_seconds(self) -> Spread:
        """Seconds of one step, over the steps of all rounds."""
        return Spread.of([s for r in self.rounds for s in r.seconds])

    @property
    def mean_step_seconds(self) -> Spread:
        """Seconds of a round's steps, divided by their number, over rounds."""
        return Spread.of([sum(r.seconds) / len(r.seconds) for r in self.rounds])

    @property
    def peak_increase_bytes(self) -> Spread:
        """Peak memory above what the process held before the contender was built."""
        return Spread.of([r.peak_bytes - r.baseline_bytes for r in self.rounds])

    @property
    def peak_bytes(self) -> Spread:
        """Peak memory of the whole process."""
        return Spread.of([r.peak_bytes for r in self.rounds])

    def times_faster_than(self, other: Measurement) -> Spread:
        """Ratio of tokens a second, round by round."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return Spread.of([a.tokens_per_second / b.tokens_per_second for a, b in pairs])


@dataclass(frozen=True)
class Spread:
    """Median and interquartile range of repeated readings."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, readings: Sequence[float]) -> Spread:
        """The quartiles of `readings`."""
        low, median, high = np.percentile(readings, [25, 50, 75]).tolist()
        return cls(median, low, high)


def alternate(
    contenders: Sequence[Contender],
    batches: Sequence[Batch],
    rounds: int,
    warm_up: Sequence[Batch] = (),
    progress: Callable[[str], None] = lambda text: None,
    tokens: Callable[[Batch], int] = lambda batch: batch.tokens,
    device: Device = CPU,
) -> list[Measurement]:
    """Run the batches through every contender, `rounds` times, in turn.

    Each round times its own equal share of the batches, after steps on those of `warm_up`.
    `tokens` says how many tokens of a batch count.
    """
    assert len(batches) % rounds == 0, "every round times the same number of steps"
    share = len(batches) // rounds
    seen: dict[str, list[Round]] = {c.name: [] for c in contenders}
    for number in range(rounds):
        timed = batches[number * share : (number + 1) * share]
        for contender in contenders:
            progress(f"round {number + 1}/{rounds}: {contender.name}")
            seen[contender.name].append(_one_round(contender, warm_up, timed, tokens, device))
    return [Measurement(c.name, c.what, tuple(seen[c.name])) for c in contenders]


def _one_round(
    contender: Contender,
    warm_up: Sequence[Batch],
    timed: Sequence[Batch],
    tokens: Callable[[Batch], int],
    device: Device,
) -> Round:
    timed = timed[: contender.most]
    with device.memory() as memory:
        trace = contender.build()([*warm_up, *timed])
    memory = trace.memory or memory
    return Round(
        seconds=trace.seconds[len(warm_up) :],
        tokens=sum(map(tokens, timed)),
        first_result=trace.results[0],
        baseline_bytes=memory.baseline_bytes,
        peak_bytes=memory.peak_bytes,
    )
