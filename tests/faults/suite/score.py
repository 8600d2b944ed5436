"""How right a diagnosis is, by the truth that only the suite knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.faults.suite.case import Answer, Case

CLOSED = 0.95
"""Share of the gap that the exchange of a proven cause must close."""


@dataclass(frozen=True)
class Judged:
    """One case and what was said of it. None: there is nothing to say about that here."""

    case: str
    number: int
    kind: str
    faults: tuple[str, ...]
    subject: str
    severity: str
    held_out: bool
    verdict: str  # same, unsure, different; "none" where there was no answer
    said: tuple[str, ...]  # labels of the causes, strongest first
    detected: float  # 1, 0.5 or 0; of pairs that are the same: a false alarm
    top1: bool | None = None
    top3: bool | None = None
    found: float | None = None  # share of the faults among the causes
    rung: bool | None = None
    place: bool | None = None
    step: bool | None = None
    proven: tuple[tuple[str, bool, float | None], ...] = ()  # label, right, gap closed
    seconds: float = 0.0  # of processors, as below
    prove_seconds: float | None = None
    problem: str = ""


def is_cause(answer: Answer, cause: Mapping[str, Any]) -> bool:
    """Whether a cause names the fault, or something that is the same by its value."""
    if cause["label"] in answer.labels:
        return True
    if cause["label"] not in answer.aliases or answer.value is None:
        return False
    values = [cause.get("value"), cause.get("other")]
    return any(x is not None and abs(x - answer.value) < 0.02 for x in values)


def judge(
    case: Case,
    number: int,
    answer: Mapping[str, Any] | None,
    *,
    seconds: float = 0.0,
    prove_seconds: float | None = None,
    problem: str = "",
) -> Judged:
    """The answer of `weft diff --json`, or of a baseline in that form; None where there is none."""
    answer = answer or {"verdict": "none", "causes": []}
    causes, verdict = answer["causes"], answer["verdict"]
    silent = 1.0 if case.is_same else 0.0  # no answer is no "same", and detects nothing
    alarm = {"different": 1.0, "unsure": 0.5, "none": silent}.get(verdict, 0.0)
    right = [any(is_cause(one, cause) for one in case.answers) for cause in causes]
    proven = tuple(
        (cause["label"], ok, cause.get("gap_closed"))
        for cause, ok in zip(causes, right, strict=True)
        if cause.get("confidence") == "proven"
    )
    plain = Judged(
        case=case.name,
        number=number,
        kind=case.kind,
        faults=case.faults,
        subject=case.subject,
        severity=case.severity,
        held_out=case.held_out,
        verdict=verdict,
        said=tuple(cause["label"] for cause in causes),
        detected=alarm,
        proven=proven,
        seconds=seconds,
        prove_seconds=prove_seconds,
        problem=problem,
    )
    if case.is_same:
        return plain
    named = [
        next((cause for cause in causes if is_cause(one, cause)), None) for one in case.answers
    ]
    facts: dict[str, Any] = {
        "found": sum(each is not None for each in named) / len(named),
        "top1": bool(right[:1] and right[0]),
        "top3": any(right[:3]),
    }
    if case.kind == "single":
        facts |= _where(case.answers[0], named[0], answer)
    return Judged(**{**vars(plain), **facts})


def _where(
    truth: Answer, cause: Mapping[str, Any] | None, answer: Mapping[str, Any]
) -> dict[str, bool | None]:
    """Of the cause that names the fault; where none does, of the first divergence."""
    seen = cause or answer.get("first_divergence") or {}
    step, place = seen.get("step"), seen.get("place") or ""
    return {
        "rung": seen.get("rung") in truth.rungs,
        "place": None if truth.place is None else bool(re.search(truth.place, place)),
        "step": None if truth.steps is None else step in truth.steps,
    }
