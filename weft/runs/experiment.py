"""An experiment on disk: arms, each an ordinary run, and the record that says what they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weft.core.errors import InputError
from weft.core.files import read_json, write_json
from weft.runs.layout import ExperimentLayout
from weft.runs.manifest import SCHEMA_VERSION, utc_now
from weft.runs.reader import RunReader
from weft.runs.timing import Breakdown

BASE = "base"
START = "start"
"""The name of the untouched base among the scores; no arm has it."""

DIVERGED = "diverged"
"""What the scores of an arm hold instead of scores when a number was not finite: which one."""

ArmStatus = Literal["finished", "diverged", "unfinished"]


class ArmRecord(BaseModel):
    """One arm: the run that it is, and what its table says of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slug: str
    """The name of its run directory."""

    config: dict[str, Any]
    """The resolved configuration of its run."""

    origins: dict[str, str]
    members: dict[str, int]
    """Seed of each adapter that the run trains, by the adapter's name."""

    steps: int
    forwards_per_step: int
    unused_forwards: int = 0
    """What is left of a budget that is no multiple of `forwards_per_step`."""

    settings: dict[str, Any] = {}
    """Method, optimiser, rank, alpha, scale, lr and rows a step, for tables."""

    notices: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    """What makes a comparison with the reference unfair or unclear."""


class ExperimentRecord(BaseModel):
    """What `experiment.json` holds. Every field is plain JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    status: Literal["running", "finished", "interrupted", "failed"] = "running"
    name: str
    description: str = ""
    created: str = Field(default_factory=utc_now)
    command: str = ""
    text: str
    """What `config.yaml` holds, so that a change is found."""

    seeds: tuple[int, ...]
    budget: dict[str, int]
    reference: str
    x: Literal["forwards", "steps"]
    arms: dict[str, ArmRecord]
    groups: tuple[tuple[str, ...], ...]
    """Arms that share their forwards."""

    @property
    def before(self) -> str:
        """What is scored beside the arms: the adapter that the reference starts from, or `base`."""
        return START if self.arms[self.reference].config.get("start") else BASE

    def notes(self) -> list[str]:
        """Remarks and notices; what several arms have in common stands once."""
        found: dict[str, list[str]] = {}
        for name, arm in self.arms.items():
            for text in (*arm.remarks, *arm.notices):
                found.setdefault(text, []).append(name)
        everywhere = len(self.arms)
        return [
            f"{'all arms' if len(names) == everywhere > 1 else listed(names)}: {text}"
            for text, names in found.items()
        ]

    def save(self, path: Path) -> None:
        """Write atomically, in the order of the fields."""
        write_json(path, self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def load(cls, path: Path) -> ExperimentRecord:
        """Read and check what `save` wrote."""
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, issue['loc'])) or 'the file'}: {issue['msg']}"
                for issue in error.errors()
            ]
            raise InputError(
                f"{path} is not the record of an experiment:\n  " + "\n  ".join(problems)
            ) from None


class ExperimentReader:
    """An experiment, finished or not: every call reads what is there now."""

    def __init__(self, root: Path) -> None:
        """Refuse a path that is not the directory of an experiment."""
        self.layout = ExperimentLayout(root)
        if not self.layout.record.is_file():
            raise InputError(
                f"{root} is not the directory of an experiment: it has no {self.layout.record.name}"
                if root.exists()
                else f"there is no directory {root}",
                hint="give the directory that `weft experiment` printed",
            )

    @property
    def record(self) -> ExperimentRecord:
        """What the experiment is."""
        return ExperimentRecord.load(self.layout.record)

    def run(self, arm: ArmRecord) -> RunReader | None:
        """The run of an arm; None before it started."""
        layout = self.layout.arm(arm.slug)
        return RunReader(layout.root) if layout.manifest.is_file() else None

    def times(self) -> Breakdown | None:
        """Where the time of the training went: arms that trained together count once."""
        found = None
        for group in self.record.groups:
            runs = [self.run(self.record.arms[name]) for name in group]
            times = [each for run in runs if run is not None and (each := run.times())]
            if times:
                longest = max(times, key=lambda each: each.total)
                found = longest if found is None else longest.after(found)
        return None if found is None else Breakdown(found.phases)

    def trained(self, arm: ArmRecord) -> bool:
        """Whether the run of an arm is complete."""
        return self.layout.arm(arm.slug).done.is_file()

    def status(self, arm: ArmRecord) -> ArmStatus:
        """How far an arm came: diverged and finished ones are over."""
        scores = self.scores(arm.slug)
        if DIVERGED in scores:
            return "diverged"
        return "finished" if scores else "unfinished"

    def trouble(self, arm: ArmRecord) -> str | None:
        """What was not finite in an arm that diverged."""
        return self.scores(arm.slug).get(DIVERGED)

    def scores(self, slug: str) -> dict[str, Any]:
        """What an arm, or `base`, scored at the end; empty before that."""
        path = self.layout.score(slug)
        found: dict[str, Any] = read_json(path) if path.is_file() else {}
        return found


def slug_of(name: str, taken: Collection[str]) -> str:
    """A directory name for an arm, different from the others on every file system."""
    stem = re.sub(r"[^A-Za-z0-9_.=+@-]+", "-", name).strip("-.=+@") or "arm"
    used = {each.lower() for each in taken} | {BASE}
    number, found = 1, stem
    while found.lower() in used:
        number += 1
        found = f"{stem}-{number}"
    return found


def listed(arms: Sequence[str]) -> str:
    """Names in a row; told apart also where they have commas of their own."""
    return ("; " if any("," in name for name in arms) else ", ").join(arms)
