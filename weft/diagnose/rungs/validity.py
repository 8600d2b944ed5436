"""Rung 0: is there something to compare, did it end well, and does each side agree with itself?

The parts of one side (`overflow`, `dropping`, `failed_checks`, `idle_adapter`) need no other side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from weft.diagnose.compare import noise
from weft.diagnose.compare.operators import adapter
from weft.diagnose.compare.places import number
from weft.diagnose.finding import Finding, Looked, Nature, Swap
from weft.diagnose.labels import Label
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.diagnose.sides.objective import MEAN, candidates, tokens_of
from weft.diagnose.words import counted
from weft.runs.evidence import Check, Pass

RUNG = 0

LARGEST = {"float16": 65504.0, "bfloat16": 3.39e38, "float32": 3.40e38}
"""The largest finite number, by dtype."""

MEANS: Mapping[str, tuple[Label, str]] = {
    "repeat": ("mode", "the same input twice gives two results"),
    "row": ("mask", "a row gives another result alone than in its batch"),
    "cache": ("cache", "decoding with the cache gives another result than reading all again"),
    "split": ("normaliser", "a batch in two forwards gives another loss"),
}
"""What a failed self-check points at."""


def look(pair: Pair) -> Looked:
    """Statuses, counts, non-finite values, modes and self-checks of both sides."""
    findings: list[Finding] = []
    equal: list[str] = []
    unseen: list[str] = []
    for letter, side in pair.sides:
        unseen += _empty(letter, side)
    findings += _ends(pair)
    findings += _overflows(pair)
    findings += _modes(pair)
    findings += _checks(pair)
    if not any(each.label == "overflow" for each in findings) and _both_ran(pair):
        passes = sum(len(side.passes) for _, side in pair.sides)
        equal.append(f"all values finite: {counted(passes, 'pass', 'passes')}")
    for name in ("repeat", "row", "cache"):
        seen = [bool(_of(side, name)) for _, side in pair.sides]
        failed = [any(each.name == name for each in failed_checks(s)) for _, s in pair.sides]
        if all(seen) and not any(failed):
            equal.append(f"self-check ok in both: {name}")
        elif any(seen) and not all(seen):
            lacking = "A" if seen[1] else "B"
            unseen.append(f"self-check {name}: not made in {lacking}")
    return Looked(tuple(findings), tuple(equal), tuple(unseen))


@dataclass(frozen=True)
class Overflow:
    """The first module whose output was not finite."""

    module: str
    largest: float | None  # magnitude before it
    seen: Pass


def overflow(side: Evidence) -> Overflow | None:
    """Where values stopped being finite, in the first pass in which they did."""
    for each in side.passes:
        if each.nonfinite is not None:
            return Overflow(each.nonfinite, max(each.largest.values(), default=None), each)
    return None


def dropping(side: Evidence, training: bool = False) -> tuple[Pass, ...]:
    """Passes without gradients, or those of training steps, in which something was dropped."""
    return tuple(each for each in side.passes if each.dropouts and each.grad == training)


def failed_checks(side: Evidence) -> tuple[Check, ...]:
    """Self-checks whose result is no rounding.

    A side that does not repeat itself agrees with itself in nothing else: that alone is said then.
    """
    failed = tuple(
        each
        for each in side.checks
        if each.name in MEANS
        and (each.unit == "nats" or (each.name in ("repeat", "split") and _exact(side)))
        and _largest(each) > _most(side, each)
    )
    return tuple(each for each in failed if each.name == "repeat") or failed


def _largest(check: Check) -> float:
    return max(check.values, default=0.0)


def _exact(side: Evidence) -> bool:
    """Whether a batch in other parts gives the same loss but for rounding: in a run of Weft.

    Dropout of the base draws anew for each forward.
    """
    return side.kind == "run" and not any(each.training for each in side.passes)


def idle_adapter(side: Evidence) -> str | None:
    """Why an adapter that is there changes nothing, for a side that does not train; else None."""
    of = adapter(side)
    if of is None or side.steps or not of.modules:
        return None
    modules = of.modules.values()
    if all(each.norm_update == 0 and not each.merged for each in modules):
        zero = all(each.norm_b == 0 for each in modules)
        return "its factors B are zero" if zero else "its scale is zero or it is inactive"
    return None


def _most(side: Evidence, check: Check) -> float:
    """What rounding may make of a check; the same sums in the same order round alike."""
    dtypes = {each.dtype for each in side.passes}
    coarse = any("16" in dtype for dtype in dtypes) and check.name != "repeat"
    start = noise.START["nats" if check.unit == "nats" else "loss"]
    return noise.FAILED * start["bfloat16" if coarse else "float32"]


def _sees_rows(side: Evidence) -> bool:
    """Whether losses are the means of their tokens as the forwards gave them.

    Then it is no mean that makes the loss of a batch depend on how it is split: it is the tokens.
    """
    of = [(step.loss, tokens_of(side, step)) for step in side.steps]
    means = [(loss, candidates(tokens).get(MEAN)) for loss, tokens in of if loss and tokens]
    limit = max((_most(side, each) for each in _of(side, "split")), default=0.0)
    return bool(means) and all(
        mean is not None and abs(loss - mean) <= limit * abs(loss) for loss, mean in means
    )


def _of(side: Evidence, name: str) -> list[Check]:
    return [each for each in side.checks if each.name == name]


def _both_ran(pair: Pair) -> bool:
    return bool(pair.a.passes) and bool(pair.b.passes)


def _empty(letter: str, side: Evidence) -> Iterator[str]:
    """What a side lacks altogether."""
    if side.kind in ("adapter", "config"):
        return
    if not side.passes and not side.steps and not side.generations:
        yield f"{letter} recorded no pass of a model, no training step and no completion"


def _ends(pair: Pair) -> Iterator[Finding]:
    """A side that failed, was interrupted or was killed."""
    told = {
        "failed": "ended with an error",
        "interrupted": "was interrupted",
        "recording": "is not finished, or was killed",
        "running": "is not finished, or was killed",
    }
    states = [str(side.about.get("status") or "") for _, side in pair.sides]
    for (letter, side), state in zip(pair.sides, states, strict=True):
        if state in told:
            error = side.about.get("error")
            yield Finding(
                RUNG,
                "effect" if states[0] != states[1] else "harmless",
                "unknown",
                "status",
                f"{letter} {told[state]}" + (f": {error}" if error else ""),
            )


def _overflows(pair: Pair) -> Iterator[Finding]:
    first = {letter: overflow(side) for letter, side in pair.sides}
    a, b = first["A"], first["B"]
    if a is not None and b is not None:
        same = a.module == b.module
        there = "and likewise in B" if same else f"and in B first in {b.module}"
        yield _overflow("A", a, f", {there}", "harmless" if same else "factor")
        return
    for letter, here in first.items():
        if here is not None:
            yield _overflow(letter, here, "", "factor")


def _overflow(letter: str, here: Overflow, more: str, nature: Nature) -> Finding:
    dtype = here.seen.dtype.removeprefix("torch.")
    limit = LARGEST.get(dtype)
    words = f"values are not finite in {letter}, first in {here.module}{more}"
    if here.largest is not None:
        words += f": the largest before it is {number(here.largest)}"
        words += f", {dtype} ends at {number(limit)}" if limit and limit < 1e6 else ""
    return Finding(
        RUNG,
        nature,
        "overflow",
        here.module,
        words,
        value=here.largest,
        other=limit,
        unit="largest magnitude",
        where=here.seen.where,
        fix="compute in bfloat16 or float32" if dtype == "float16" else None,
        swap=Swap("dtype") if dtype == "float16" else None,
    )


def _modes(pair: Pair) -> Iterator[Finding]:
    """Dropout in passes without gradients, and training in evaluation mode, on one side only."""
    for training, here, mode in (
        (False, "in passes without gradients", "model.eval()"),
        (True, "in training steps", "model.train()"),
    ):
        ran = [any(each.grad == training for each in side.passes) for _, side in pair.sides]
        drops = [dropping(side, training) for _, side in pair.sides]
        flags = [
            {each.training for each in side.passes if each.grad == training}
            for _, side in pair.sides
        ]
        if not all(ran):
            continue
        if bool(drops[0]) != bool(drops[1]) and (not training or flags[0] != flags[1]):
            letter, other, seen = ("A", "B", drops[0]) if drops[0] else ("B", "A", drops[1])
            of = next(each for _, side in pair.sides for each in side.passes if each in seen)
            hurt = letter if not training else other
            yield Finding(
                RUNG,
                "factor",
                "mode",
                f"{counted(of.dropouts, 'module')} with dropout",
                f"dropout is active {here} in {letter} ({counted(of.dropouts, 'module')}, "
                f"{counted(len(seen), 'pass', 'passes')}) and not in {other}",
                value=float(len(drops[1])),
                other=float(len(drops[0])),
                unit="passes with dropout",
                where=of.where,
                fix=f"call {mode} in {hurt} before them",
                swap=Swap("mode"),
            )
        elif flags[0] != flags[1]:
            yield Finding(
                RUNG,
                "harmless",
                "mode",
                "model.training",
                f"training mode differs {here}, and no module acts by it",
            )


def _checks(pair: Pair) -> Iterator[Finding]:
    """Self-checks that fail: each names what to look at, the rungs that follow name the cause."""
    worst_of = {
        letter: {each.name: each for each in sorted(failed_checks(side), key=_largest)}
        for letter, side in pair.sides
    }
    for (letter, side), (other, its) in zip(pair.sides, reversed(pair.sides), strict=True):
        for check in worst_of[letter].values():
            alike = check.name in worst_of[other] or not _of(its, check.name)
            if check.unit == "relative" and alike:
                continue  # both are made so, or that is not known
            label, words = MEANS[check.name]
            if check.name == "split" and _sees_rows(side):
                label, words = "mask", f"{words}: rows of one forward see each other"
            if check.name == "repeat" and not dropping(side):
                words += ": noise acts in a forward, and no module with dropout is active"
            worst = _largest(check)
            yield Finding(
                RUNG,
                "effect",
                label,
                f"self-check {check.name}",
                f"in {letter}, {words}: {number(worst)} {check.unit}",
                value=worst,
                floor=_most(side, check),
                unit=check.unit,
            )
