"""What is known of one side of a diagnosis, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from weft.runs.evidence import (
    Check,
    Encoded,
    Event,
    Generation,
    Happened,
    Notice,
    Part,
    Pass,
    Seeded,
    Settings,
    Snapshot,
    TokenizerSeen,
    TrainStep,
    Weights,
)

Kind = Literal["run", "recording", "adapter", "config"]
PartT = TypeVar("PartT", bound=Part)


@dataclass(frozen=True)
class Setting:
    """A resolved value and where it came from."""

    value: Any
    origin: str = ""
    where: str | None = None


@dataclass(frozen=True, eq=False)
class Evidence:
    """One side: its events in order, and its arrays by name, read when they are asked for."""

    ref: str  # as the user wrote it
    kind: Kind
    path: Path
    events: tuple[Event, ...]
    array: Callable[[str], np.ndarray]
    about: Mapping[str, Any] = field(default_factory=dict)
    """Status, command, versions, hardware, files: what is known of the process."""

    lacks: tuple[str, ...] = ()
    """What this kind of side cannot show, in words."""

    def of(self, kind: type[PartT]) -> tuple[PartT, ...]:
        """Its events of one kind, in order."""
        return tuple(event for event in self.events if isinstance(event, kind))

    @cached_property
    def settings(self) -> dict[str, Setting]:
        """Resolved settings by dotted key; of several events, the last one counts."""
        return {
            key: Setting(value, event.origins.get(key, ""), event.where)
            for event in self.of(Settings)
            for key, value in event.values.items()
        }

    @cached_property
    def seeds(self) -> tuple[Seeded, ...]:
        """What was seeded."""
        return self.of(Seeded)

    @cached_property
    def tokenizers(self) -> tuple[TokenizerSeen, ...]:
        """Tokenizers that were used."""
        return self.of(TokenizerSeen)

    @cached_property
    def encoded(self) -> tuple[Encoded, ...]:
        """Texts that became ids."""
        return self.of(Encoded)

    @cached_property
    def weights(self) -> tuple[Weights, ...]:
        """Bases, as first used and whenever they had changed."""
        return self.of(Weights)

    @cached_property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """Adapters, at several moments."""
        return self.of(Snapshot)

    @cached_property
    def passes(self) -> tuple[Pass, ...]:
        """Calls of whole models."""
        return self.of(Pass)

    @cached_property
    def generations(self) -> tuple[Generation, ...]:
        """Completions."""
        return self.of(Generation)

    @cached_property
    def steps(self) -> tuple[TrainStep, ...]:
        """Training steps."""
        return self.of(TrainStep)

    @cached_property
    def happened(self) -> tuple[Happened, ...]:
        """Merges, resets, saves and the like."""
        return self.of(Happened)

    @cached_property
    def checks(self) -> tuple[Check, ...]:
        """Self-checks and null draws."""
        return self.of(Check)

    @cached_property
    def notices(self) -> tuple[str, ...]:
        """What could not be observed."""
        return tuple(event.text for event in self.of(Notice))

    def used(self) -> Snapshot | None:
        """The adapter as the model was first used with it; None where there is none."""
        return next((each for each in self.snapshots if each.when == "use"), None)

    def last(self) -> Snapshot | None:
        """The newest snapshot of an adapter."""
        return self.snapshots[-1] if self.snapshots else None


@dataclass(frozen=True, eq=False)
class Pair:
    """Both sides. Rungs are functions of it."""

    a: Evidence
    b: Evidence

    @property
    def sides(self) -> tuple[tuple[str, Evidence], tuple[str, Evidence]]:
        """With their letters."""
        return ("A", self.a), ("B", self.b)
