"""The one reader of run directories: analysis and reports see runs only through it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from weft.core.errors import InputError, did_you_mean
from weft.core.files import Record, read_json, read_jsonl
from weft.core.table import ScoreRow, ScoreTable, pair
from weft.runs.layout import RunLayout
from weft.runs.manifest import Manifest
from weft.runs.timing import TIMES, Breakdown

STEP = "-step-"
EVALUATION = f"valid{STEP}"
"""What the names of the tables of evaluations while training start with; the step follows. Beside
them lie tables of what was right, which start with the metric's name in place of `valid`."""


COMPLETIONS, COMPLETIONS_BEFORE = "completions", "completions-before"
"""Results of a run with a reward: graded completions of the kept adapter, and before training."""


def step_loss(record: Record) -> float:
    """The loss of a step's record: at theta, or where a method knows only points around it.

    NaN where it is minus a reward and nothing could be graded.
    """
    loss: float | None = record["loss"] if "loss" in record else record["loss_perturbed"]
    return math.nan if loss is None else loss


NATS_A_TOKEN, NATS_A_ROW = "nats a token", "nats a row"


def loss_unit(config: Record) -> str:
    """Of what a run's losses are means, by its stored configuration: tokens, or rows decided."""
    objective = config.get("objective", {})
    of_rows = objective.get("name") == "choice" and objective.get("loss") == "candidates"
    return NATS_A_ROW if of_rows else NATS_A_TOKEN


@dataclass(frozen=True)
class Measured:
    """What the losses of a run are to people: a loss, or minus a reward."""

    name: Literal["loss", "reward"]
    unit: str  # empty for a reward

    @classmethod
    def of_run(cls, config: Record) -> Measured:
        """By the run's stored configuration."""
        if config.get("objective", {}).get("name") == "reward":
            return cls("reward", "")
        return cls("loss", loss_unit(config))

    @property
    def lower_is_better(self) -> bool:
        """Losses are; rewards are not."""
        return self.name == "loss"

    def of(self, loss: float) -> float:
        """As people read it."""
        return loss if self.lower_is_better else 0.0 - loss  # no minus zero


class RunReader:
    """A run, finished or not. It may still be written: every call reads what is there now."""

    def __init__(self, path: Path) -> None:
        """Refuse a path that is not a run directory."""
        self.layout = RunLayout(path)
        if not self.layout.manifest.is_file():
            raise InputError(*_not_a_run(path))

    @property
    def manifest(self) -> Manifest:
        """What the run is, and how far it came."""
        return Manifest.load(self.layout.manifest)

    @property
    def measured(self) -> Measured:
        """What its losses are to people."""
        return Measured.of_run(self.manifest.config)

    @property
    def done(self) -> bool:
        """Whether the run is complete."""
        return self.layout.done.is_file()

    def config_text(self) -> str:
        """The configuration as it was given; empty when the run was killed before it was kept."""
        return self.layout.config.read_text("utf-8") if self.layout.config.exists() else ""

    def code_diff(self) -> str:
        """What the code had that its commit has not."""
        return self.layout.code_diff.read_text("utf-8") if self.layout.code_diff.exists() else ""

    def steps(self) -> list[Record]:
        """One record a step."""
        return read_jsonl(self.layout.steps)

    def evidence(self) -> list[Record]:
        """Keys and scalars of zeroth-order steps."""
        return read_jsonl(self.layout.evidence)

    def samples(self) -> list[Record]:
        """Generated texts."""
        return read_jsonl(self.layout.samples)

    def table_names(self) -> list[str]:
        """Names of the score tables."""
        return _stems(self.layout.tables, ".jsonl")

    def table(self, name: str) -> ScoreTable:
        """One score table."""
        self._expect("table", name, self.table_names())
        return ScoreTable.load(self.layout.table(name))

    def tables(self) -> dict[str, ScoreTable]:
        """All score tables by name."""
        return {name: self.table(name) for name in self.table_names()}

    def evaluations(self) -> list[tuple[int, ScoreTable]]:
        """The score tables of the evaluations while training, by step."""
        names = [name for name in self.table_names() if name.startswith(EVALUATION)]
        found = [(int(name.removeprefix(EVALUATION)), self.table(name)) for name in names]
        return sorted(found, key=lambda evaluation: evaluation[0])

    def hits(self) -> dict[str, list[tuple[int, ScoreTable]]]:
        """What the evaluations while training counted as right, by metric and by step.

        The mean of a member is its accuracy.
        """
        found: dict[str, list[tuple[int, ScoreTable]]] = {}
        for name in self.table_names():
            metric, _, step = name.rpartition(STEP)
            if metric and not name.startswith(EVALUATION):
                found.setdefault(metric, []).append((int(step), self.table(name)))
        return {metric: sorted(each, key=lambda at: at[0]) for metric, each in found.items()}

    def before_and_after(self, member: str) -> dict[str, tuple[ScoreRow, ScoreRow]]:
        """A member's scores before the first step and of its kept adapter, on the rows of both.

        `loss` comes first, and then metrics; empty where either was not measured.
        """
        names = self.table_names()
        metrics = (name.removesuffix(f"{STEP}0") for name in names if name.endswith(f"{STEP}0"))
        stems = {"loss": "valid"} | {metric: metric for metric in metrics if metric != "valid"}
        return {
            name: pair(self.table(f"{stem}{STEP}0").row(member), self.table(stem).row(member))
            for name, stem in stems.items()
            if {f"{stem}{STEP}0", stem} <= set(names)
        }

    def result_names(self) -> list[str]:
        """Names of the results."""
        return _stems(self.layout.results, ".json")

    def results(self, name: str) -> dict[str, Any]:
        """One result."""
        self._expect("result", name, self.result_names())
        result: dict[str, Any] = read_json(self.layout.result(name))
        return result

    def times(self) -> Breakdown | None:
        """Where the time went; None before the first checkpoint."""
        if TIMES not in self.result_names():
            return None
        return Breakdown.of(self.results(TIMES), self.layout.result(TIMES))

    def kept_step(self, member: str | None = None) -> int:
        """The step whose adapter was kept, of a run that keeps the best one."""
        name = "eval" if member is None else f"eval-{member}"
        step = self.results(name).get("step")
        if not isinstance(step, int):
            raise InputError(f"{self.layout.result(name)} does not say which step was kept")
        return step

    def member_names(self) -> list[str]:
        """Names of the members of a run that trained several adapters."""
        members = self.layout.members
        return sorted(entry.name for entry in members.iterdir()) if members.is_dir() else []

    def _expect(self, what: str, name: str, known: list[str]) -> None:
        if name not in known:
            has = ", ".join(known) or "none"
            raise InputError(
                f"the run {self.layout.root} has no {what} `{name}` (it has: {has})",
                did_you_mean(name, known),
            )


def _stems(directory: Path, suffix: str) -> list[str]:
    """Names in a directory without their suffix; temporaries of a writer are not among them."""
    if not directory.is_dir():
        return []
    names = (entry.name for entry in directory.iterdir() if not entry.name.startswith("."))
    return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))


def _not_a_run(path: Path) -> tuple[str, str]:
    if not path.exists():
        return f"there is no run directory {path}", "give the directory that `weft train` printed"
    if not path.is_dir():
        return f"{path} is a file, not a run directory", "give the directory that holds it"
    return (
        f"{path} is not a run directory: it has no manifest.json",
        "give the directory that `weft train` printed",
    )
