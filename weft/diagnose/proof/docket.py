"""What exchanges have shown of each cause, and the diagnosis that it makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from weft.diagnose.finding import Cause, Confidence, Diagnosis
from weft.diagnose.proof.solve import Shown, Solved, Trial
from weft.diagnose.proof.swaps import SWAPS

RUNG = {
    "prompt": 2, "ids": 2, "mask": 2, "positions": 2, "labels": 2, "base": 3, "tied": 3, "dtype": 1,
    "trainable": 4, "attach": 4, "adapter": 5, "scale": 5, "mode": 0, "context": 8, "sampler": 9,
    "stop": 9, "seed": 9, "init": 10, "normaliser": 10, "optimiser": 10, "order": 11,
    "schedule": 11,
}  # fmt: skip
"""Where a factor belongs on the ladder, for causes that only the exchange found."""


@dataclass
class Docket:
    """What is known so far of each cause."""

    diagnosis: Diagnosis
    proven: dict[int, Cause] = field(default_factory=dict)
    effect: dict[int, float] = field(default_factory=dict)  # nats, to rank by
    idle: dict[int, str] = field(default_factory=dict)
    new: list[tuple[float, Cause]] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    ruled_out: list[str] = field(default_factory=list)


def trials_of(causes: Sequence[Cause]) -> Iterator[Trial]:
    """The exchanges that findings name; positions of decoding steps are part of their context."""
    for number, cause in enumerate(causes):
        swap = cause.finding.swap
        if swap is not None and swap.factor in SWAPS:
            decoding = swap.factor == "positions" and cause.finding.rung == RUNG["context"]
            yield Trial("context" if decoding else swap.factor, swap.places, swap.step, number)


def fold(case: Docket, accepted: Sequence[Trial]) -> None:
    """A factor that was found in several places is one cause."""
    for number, cause in enumerate(case.diagnosis.causes):
        swap = cause.finding.swap
        same = [
            each for each in trials_of(case.diagnosis.causes)
            if each.cause == number
            for trial in accepted
            if trial.cause not in (None, number)
            and (trial.factor, trial.places) == (each.factor, each.places)
        ]  # fmt: skip
        if swap is not None and same:
            case.idle[number] = "part of a cause above: they are exchanged together"


def settle(
    case: Docket,
    shown: Shown,
    solved: Solved,
    sure: bool,
    unit: str,
    metric: str,
    *,
    by_nats: bool = False,
) -> None:
    """Give a suspected cause what its exchange showed."""
    number = shown.trial.cause
    assert number is not None
    confidence: Confidence = solved.confidence(shown)
    if confidence == "proven" and not sure:
        confidence = "supported"
    before = case.proven.get(number)
    if before is not None and before.confidence == "proven":
        return
    cause = case.diagnosis.causes[number]
    case.proven[number] = tried(cause, shown, solved, confidence, unit, metric)
    if by_nats:
        case.effect[number] = shown.opens


def tried(
    cause: Cause, shown: Shown, solved: Solved, confidence: Confidence, unit: str, metric: str
) -> Cause:
    """A cause with what exchanging it did."""
    alone = shown in solved.accepted and len(solved.accepted) == 1
    closed = solved.gap - shown.alone if alone else max(shown.took, 0.0)
    floor = f"(floor {solved.floor:.2g})"
    name = shown.trial.name
    proof = [
        f"B with A's {name}: {metric} {solved.gap:.3g} -> {shown.alone:.3g} {unit} {floor}",
        f"A with B's {name}: {metric} 0 -> {shown.opens:.3g} {unit}",
    ]
    if shown.without is not None and not alone:
        proof.append(
            f"B with all of A's causes but {name}: {metric} {shown.without:.3g} {unit}, "
            f"with it {solved.left:.3g}"
        )
    return replace(
        cause,
        confidence=confidence,
        gap_closed=share(closed, solved.gap),
        reproduces=share(shown.opens, solved.gap),
        proof=tuple(proof),
    )


def share(part: float, whole: float) -> float:
    """A part of a whole, within 0 and 1."""
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


def concluded(case: Docket, forwards: int) -> Diagnosis:
    """Causes with what was shown of them, by effect; those without any are set apart."""
    diagnosis = case.diagnosis
    ranked: list[tuple[tuple[float, int], Cause]] = []
    harmless = list(diagnosis.harmless)
    for number, cause in enumerate(diagnosis.causes):
        if number in case.idle and number not in case.proven:
            harmless.append(f"{cause.finding.words} ({case.idle[number]})")
            continue
        shown = case.proven.get(number, cause)
        ranked.append(((-case.effect.get(number, _unknown(case, number)), number), shown))
    ranked += [((-effect, 99), cause) for effect, cause in case.new]
    ranked.sort(key=lambda each: each[0])
    causes = tuple(cause for _, cause in ranked)
    if any(cause.confidence in ("proven", "supported") for cause in causes):
        causes = tuple(cause for cause in causes if cause.confidence != "unresolved")
    verdict = diagnosis.verdict
    if verdict == "same" and any(cause.confidence == "proven" for _, cause in case.new):
        verdict = "different"
    if not causes and verdict == "different" and _same(diagnosis):
        verdict = "same"
    words = diagnosis.words
    if causes and causes[0].finding is not (diagnosis.causes or causes)[0].finding:
        more = f", and {len(causes) - 1} more" if len(causes) > 1 else ""
        words = f"{causes[0].finding.words}{more}"
    elif verdict == "same" != diagnosis.verdict:
        words = "A and B are the same within noise"
    return replace(
        diagnosis,
        verdict=verdict,
        words=words,
        causes=causes,
        first=None if verdict == "same" else diagnosis.first,
        harmless=tuple(harmless),
        ruled_out=(*diagnosis.ruled_out, *case.ruled_out),
        not_checked=tuple(dict.fromkeys((*diagnosis.not_checked, *case.not_checked))),
        forwards=forwards,
    )


def _unknown(case: Docket, number: int) -> float:
    """The effect of a cause that was not measured in nats: as large as the ladder ranks it."""
    known = [effect for n, effect in case.effect.items() if n > number]
    return max(known, default=0.0)


def _same(diagnosis: Diagnosis) -> bool:
    return bool(diagnosis.outcome) and all(each.apart == "same" for each in diagnosis.outcome)
