"""What was asked for beside what was measured: a table from the newest results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from benchmarks.harness import Measurement, Round, Spread
from benchmarks.report import Rows
from benchmarks.sft_peers import TRL
from benchmarks.sft_step import DYNAMIC, GROUPED, PADDED

NAME = "targets"
NOT_MEASURED = "not measured"

Result = Mapping[str, Any]
"""A report as it is kept."""


@dataclass(frozen=True)
class Target:
    """What a benchmark must show."""

    benchmark: str
    what: str
    against: str
    least: float
    aim: float
    read: Callable[[Result], float | None]
    unit: str = "x"
    less_is_better: bool = False

    def row(self, result: Result | None) -> list[str]:
        """With what was measured, and when."""
        value = self.read(result) if result else None
        asked = [self.what, self.against, self._said(self.least), self._said(self.aim)]
        if result is None or value is None:
            return [*asked, NOT_MEASURED, "", ""]
        return [*asked, self._said(round(value, 2)), self._verdict(value), result["date"][:10]]

    def _said(self, value: float) -> str:
        return f"{value:g}{self.unit}"

    def _verdict(self, value: float) -> str:
        reaches = [
            value <= wanted if self.less_is_better else value >= wanted
            for wanted in (self.aim, self.least)
        ]
        return "aim" if reaches[0] else "reached" if reaches[1] else "**missed**"


def faster(*peers: str) -> Callable[[Result], float | None]:
    """Than the best of these, which all took part."""

    def read(result: Result) -> float | None:
        found = measurements(result)
        if not {*peers, result["subject"]} <= found.keys():
            return None
        subject = found[result["subject"]]
        return min(subject.times_faster_than(found[peer]).median for peer in peers)

    return read


def memory(peer: str) -> Callable[[Result], float | None]:
    """As a share of what the peer takes."""

    def read(result: Result) -> float | None:
        found = measurements(result)
        if peer not in found:
            return None
        own = found[result["subject"]].peak_increase_bytes.median
        return own / found[peer].peak_increase_bytes.median

    return read


def of_products(result: Result) -> float | None:
    """The share of a step that products alone would take."""
    limits = [each for each in result.get("limits", ()) if each["unit"] == "FLOP"]
    if not limits:
        return None
    subject = measurements(result)[result["subject"]]
    return float(limits[0]["seconds"]) / subject.mean_step_seconds.median


def seconds(command: str) -> Callable[[Result], float | None]:
    """Of a process."""
    return lambda result: Spread.of(result["seconds"][command]).median


def sft(name: str, dtype: str) -> list[Target]:
    """Of one training step."""
    what = f"SFT step, {dtype}"
    return [
        Target(name, what, "PEFT + Trainer, padded to 512", 10, 15, faster(PADDED)),
        Target(name, what, "PEFT + Trainer, grouped by length", 1.8, 2.5, faster(GROUPED)),
        Target(name, what, "TRL, its best setting", 1.4, 2, faster(*TRL)),
        Target(name, what, "measured limit of products", 0.5, 0.7, of_products, ""),
        Target(
            name,
            f"{what}: peak memory",
            "PEFT + Trainer, dynamic padding",
            0.6,
            0.4,
            memory(DYNAMIC),
            less_is_better=True,
        ),
    ]


def decoding(name: str, what: str) -> Target:
    """Of greedy decoding."""
    return Target(name, f"decode, greedy, {what}", "transformers", 1.5, 3, faster("transformers"))


def population(name: str, dtype: str) -> list[Target]:
    """Of a population's decoding."""
    what = f"population decode, {dtype}"
    return [
        Target(name, what, "PEFT, one adapter after another", 3.5, 5, faster("peft_each")),
        Target(name, what, "PEFT, mixed batch", 2, 3, faster("peft_mixed")),
        Target(name, what, "vLLM on the CPU", 2, 4, faster("vllm")),
        Target(name, what, "Weft, bare base", 0.8, 0.9, faster("bare")),
    ]


def start(command: str, what: str, least: float, aim: float) -> Target:
    """Of a command."""
    return Target(
        "start_up", f"`{command}`{what}", "a clock", least, aim, seconds(command), " s", True
    )


TARGETS = (
    *sft("sft_step", "fp32"),
    *sft("sft_step_bfloat16", "bf16"),
    Target(
        "sft_last_quarter",
        "LoRA on the last quarter of the layers, 3 epochs",
        "PEFT + Trainer, dynamic padding",
        2.5,
        4,
        faster(DYNAMIC),
    ),
    Target("sft_eight_adapters", "8 adapters at once", "8 PEFT runs", 2, 3, faster(DYNAMIC)),
    Target("mezo_step", "MeZO step, opt-350m shape", "MeZO as published", 4, 6, faster("mezo")),
    *population("population", "fp32"),
    *population("population_bfloat16", "bf16"),
    decoding("decode_1_prompt", "1 prompt"),
    decoding("decode_32_prompts", "32 prompts"),
    Target("mlx_training", "LoRA training on the bundled base", "mlx-lm", 1.5, 3, faster("mlx_lm")),
    start("weft --help", "", 0.25, 0.15),
    start("weft check", "", 1, 0.5),
    start("weft diff", " of two runs", 2, 1),
)


def rows(folder: Path) -> Rows:
    """A heading, then one row a target."""
    found = newest(folder)
    heading = ["", "against", "at least", "aim", "measured", "", "on"]
    return [heading, *(target.row(found.get(target.benchmark)) for target in TARGETS)]


def newest(folder: Path) -> dict[str, Result]:
    """The last result of each benchmark on the CPU."""
    found: dict[str, Result] = {}
    for result in (json.loads(path.read_text()) for path in folder.glob("*.json")):
        if result.get("device", "cpu") == "cpu":
            known = found.get(result["benchmark"])
            if known is None or result["date"] > known["date"]:
                found[result["benchmark"]] = result
    return found


def measurements(result: Result) -> dict[str, Measurement]:
    """By contender."""
    return {
        each["contender"]: Measurement(
            each["contender"], each["what"], tuple(map(_round, each["rounds"]))
        )
        for each in result["measurements"]
    }


def _round(kept: Mapping[str, Any]) -> Round:
    """What was checked when it was measured is not asked for again."""
    return Round(
        tuple(kept["seconds"]), kept["tokens"], nan, kept["baseline_bytes"], kept["peak_bytes"]
    )
