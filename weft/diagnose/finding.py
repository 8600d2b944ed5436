"""What a look at one rung finds, and what a diagnosis says in the end: plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from weft.diagnose.labels import Label

Verdict = Literal["same", "unsure", "different"]
Confidence = Literal["proven", "supported", "located", "unresolved"]
Nature = Literal["factor", "effect", "harmless"]
"""Something that one side was given or did differently, and so may be a cause; something that it
computed differently; something that differs and cannot matter."""


@dataclass(frozen=True)
class Swap:
    """A factor that can be exchanged between two replicas (see weft.diagnose.replica).

    `factor` is a key of SWAPS; `places` are the modules, rows or keys concerned (none: all of it).
    """

    factor: str
    places: tuple[str, ...] = ()
    step: int | None = None


@dataclass(frozen=True)
class Finding:
    """One difference between A and B, at one rung of the ladder."""

    rung: int
    nature: Nature
    label: Label
    place: str
    words: str  # a sentence: what, where, A's and B's
    step: int | None = None  # a training step, or a decoding step, counted from 1
    value: float | None = None  # of the difference, in `unit`
    other: float | None = None  # a second number, where a pair says more (A's 2, B's 16)
    floor: float | None = None  # what noise alone gives, in the same unit
    unit: str = ""
    where: str | None = None  # the line of B's code (or A's) to look at
    fix: str | None = None
    swap: Swap | None = None

    @property
    def multiple(self) -> float | None:
        """How many times the floor."""
        if self.value is None or not self.floor:
            return None
        return self.value / self.floor

    def mend(self) -> str:
        """What to do, and the line to do it at; empty where neither is known."""
        if self.fix and self.where:
            return f"{self.fix}; {self.where}"
        return self.fix or (f"see {self.where}" if self.where else "")


@dataclass(frozen=True)
class Outcome:
    """One measure of how far A and B are apart in what they compute."""

    name: str
    value: float
    floor: float | None
    unit: str
    words: str
    prompts: int = 1  # how many prompts, steps or rows are apart by more than three floors
    of: int = 1  # of how many that were compared
    rungs: tuple[int, ...] = tuple(range(12))  # a factor at which of these can have moved it

    @property
    def apart(self) -> Verdict:
        """At most a floor; above three floors, on two prompts if there are two; or in between."""
        floor = self.floor or 0.0
        if math.isnan(self.value):
            return "different"
        if self.value <= floor:
            return "same"
        clear = self.value > 3 * floor and self.prompts >= min(2, self.of)
        return "different" if clear or not floor else "unsure"


@dataclass(frozen=True)
class Looked:
    """What one rung says: differences, what is equal, and what could not be seen and why."""

    findings: tuple[Finding, ...] = ()
    equal: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    outcome: tuple[Outcome, ...] = ()
    curves: Mapping[str, Any] = field(default_factory=dict)
    """Divergence by layer, by position, by step: lists of numbers, for pictures."""


@dataclass(frozen=True)
class Cause:
    """A difference that explains the outcome, with how sure that is."""

    finding: Finding
    confidence: Confidence
    gap_closed: float | None = None
    """Share of the gap that is gone when B gets A's factor, 1 - D(A, B with A's) / D(A, B)."""

    reproduces: float | None = None  # share of the gap that A with B's factor opens
    proof: tuple[str, ...] = ()  # sentences


@dataclass(frozen=True)
class Passage:
    """What A and B were asked and said in one place."""

    prompts: tuple[str, str]
    texts: tuple[str, str]
    token: int | None  # the first that differs, counted from 1


@dataclass(frozen=True)
class Diagnosis:
    """The answer of `weft diff`."""

    a: str
    b: str
    verdict: Verdict
    words: str
    causes: tuple[Cause, ...] = ()
    first: Finding | None = None  # the first divergence
    outcome: tuple[Outcome, ...] = ()
    effects: tuple[Finding, ...] = ()
    harmless: tuple[str, ...] = ()
    ruled_out: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    coverage: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Any] = field(default_factory=dict)
    """Divergence by layer, by position, by step: lists of numbers for the page."""

    passages: tuple[Passage, ...] = ()
    seconds: float = 0.0
    forwards: int = 0

    def record(self) -> dict[str, Any]:
        """For `--json`: plain values only."""
        found = {
            "a": self.a,
            "b": self.b,
            "verdict": self.verdict,
            "words": self.words,
            "causes": [
                {
                    **_finding(cause.finding),
                    "confidence": cause.confidence,
                    "gap_closed": cause.gap_closed,
                    "reproduces": cause.reproduces,
                    "proof": list(cause.proof),
                }
                for cause in self.causes
            ],
            "first_divergence": None if self.first is None else _finding(self.first),
            "outcome": [vars(outcome) | {"apart": outcome.apart} for outcome in self.outcome],
            "effects": [_finding(effect) for effect in self.effects],
            "harmless": list(self.harmless),
            "ruled_out": list(self.ruled_out),
            "not_checked": list(self.not_checked),
            "coverage": dict(self.coverage),
            "passages": [vars(passage) for passage in self.passages],
            "seconds": self.seconds,
            "forwards": self.forwards,
        }
        return {key: _plain(value) for key, value in found.items()}


def _finding(found: Finding) -> dict[str, Any]:
    kept = {key: value for key, value in vars(found).items() if key not in ("swap", "nature")}
    return kept | {"multiple": found.multiple}


def _plain(value: Any) -> Any:
    """A value as JSON has it: rungs count and measure with NumPy."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
