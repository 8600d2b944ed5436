"""The updates of one module on both sides, and what of them can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from weft.diagnose.compare.algebra import Fit, Update, fit
from weft.diagnose.compare.operators import Applied, Operator, adapter
from weft.diagnose.finding import Finding
from weft.diagnose.sides.evidence import Pair
from weft.runs.evidence import Snapshot

SAME = 1e-5
"""Relative residual of two updates that float32 factors leave when they are the same."""

ROUNDED = 5e-3
"""The same, where the factors of one are those of the other rounded to 16 bits."""

READERS = ("peft", "file", "load_state_dict")
"""What an adapter is read by; a base has the class that read it."""


@dataclass(frozen=True, eq=False)
class Compared:
    """One module that acts on at least one side."""

    of: Operator
    a: Applied
    b: Applied
    fit: Fit | None  # of B @ A by themselves; None where factors are zero or were not kept

    @property
    def ratio(self) -> float:
        """c: how many times A's update B's is."""
        if strength(self.a) == 0:
            return float("nan")
        products = self.fit.ratio if self.fit is not None else 1.0
        return self.b.total * products / self.a.total

    @property
    def lost(self) -> bool:
        """Whether one side's does nothing, and the other's does something."""
        return (strength(self.a) == 0) != (strength(self.b) == 0)

    @property
    def doubled(self) -> bool:
        """Whether one side's update is both in the base and beside it, and the other's is not."""
        return twice(self.a) != twice(self.b)

    @property
    def other(self) -> bool:
        """Whether one is no multiple of the other."""
        return self.fit is not None and not (self.fit.residual <= ROUNDED and self.fit.ratio > 0)


def training(pair: Pair) -> bool:
    """Whether both sides train, so that an update that is still zero says nothing."""
    return bool(pair.a.steps and pair.b.steps)


def at_first_step(pair: Pair, findings: Sequence[Finding]) -> list[Finding]:
    """What differs before training first shows at its first step."""
    if not training(pair):
        return list(findings)
    step = min(pair.a.steps[0].step, pair.b.steps[0].step)
    return [
        replace(each, step=step) if each.nature != "harmless" and each.step is None else each
        for each in findings
    ]


def initial(of: Snapshot) -> bool:
    """Whether it was taken before any training step."""
    return of.when == "use" and not of.step


def given(pair: Pair) -> bool:
    """Whether a side starts from an adapter that it read."""
    for _, side in pair.sides:
        of = adapter(side)
        start = side.settings.get("start")
        if (of is not None and of.load) or (start is not None and start.value):
            return True
        if any(each.what == "load" and each.facts.get("by") in READERS for each in side.happened):
            return True
    return False


def compare(op: Operator, trained: bool, fresh: bool) -> Compared | None:
    """A module whose update does something; None where both do nothing, or it cannot be said.

    Where both sides train, factors are compared only where training starts from a given adapter
    (`fresh`): drawn ones are for rungs 4 and 10, later ones are a result. Scales always are.
    """
    a, b = op.a, op.b
    if a is None or b is None:
        return None
    if trained and not (fresh and a.norm and b.norm):
        return Compared(op, replace(a, norm=1.0), replace(b, norm=1.0), None)
    if not strength(a) and not strength(b):
        return None
    found = None
    if a.norm and b.norm and a.update is not None and b.update is not None:
        if a.update.shape != b.update.shape:
            return None  # another module under this name: rung 4 says so
        found = fit(a.update, b.update)
        if found.residual > SAME and not _rounded(a.update, b.update):
            found = replace(found, residual=max(found.residual, 2 * ROUNDED))
    elif a.norm and b.norm and not op.same_factors:
        return None
    return Compared(op, a, b, found)


def strength(applied: Applied | None) -> float:
    """How much an update does: 0 for one that is zero, inactive or scaled by 0."""
    if applied is None or not applied.norm:
        return 0.0
    return abs(applied.total)


def twice(applied: Applied) -> bool:
    """Whether an update is in the base and beside it."""
    return bool(applied.path) and bool(applied.merged)


def _rounded(first: Update, second: Update) -> bool:
    """Whether the factors of one are those of the other but for rounding to 16 bits."""
    if first.a.shape != second.a.shape:
        return False
    return all(
        bool(np.allclose(x, y, rtol=2.0**-7, atol=2.0**-9 * float(np.abs(y).max(initial=0.0))))
        for x, y in ((first.a, second.a), (first.b, second.b))
    )
