"""Rung 5: the updates themselves, `scale * B @ A`, by low-rank algebra.

What counts is what acts: the scale at which an update is added beside the base plus that at which
the base contains it. Factors are never compared as such, since many make the same update.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from weft.diagnose.algebra import Fit, Update, fit
from weft.diagnose.evidence import Pair
from weft.diagnose.finding import Finding, Looked, Swap
from weft.diagnose.operators import Applied, Operator, adapter, operators, ranks_of
from weft.diagnose.places import group, number
from weft.diagnose.recipes import recipe
from weft.diagnose.rungs.relocation import relocations
from weft.runs.evidence import Snapshot

RUNG = 5

SAME = 1e-5
"""Relative residual of two updates that float32 factors leave when they are the same."""

ROUNDED = 5e-3
"""The same, where the factors of one are those of the other rounded to 16 bits."""

READERS = ("peft", "file", "load_state_dict")
"""What an adapter is read by; a base has the class that read it."""

UNEXPLAINED = 0.05
"""A module that adds more than this beside a multiple of B @ A computes something else."""


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
        return _twice(self.a) != _twice(self.b)

    @property
    def other(self) -> bool:
        """Whether one is no multiple of the other."""
        return self.fit is not None and not (self.fit.residual <= ROUNDED and self.fit.ratio > 0)


def look(pair: Pair) -> Looked:
    """Ratio, cosine and residual of the updates of each module."""
    of_a, of_b = adapter(pair.a), adapter(pair.b)
    if of_a is None and of_b is None:
        return Looked(unseen=("effective updates: no adapter was seen on either side",))
    both = [op for op in operators(pair) if op.a is not None and op.b is not None]
    later = training(pair)
    fresh = all(each is not None and initial(each) for each in (of_a, of_b)) and _given(pair)
    compared = [made for op in both if (made := compare(op, later, fresh)) is not None]
    if not compared:
        return Looked(unseen=("effective updates: no module acts on both sides",))
    rest = [each for each in compared if not (each.of.equal or each.of.rounded_away)]
    names = [each.of.name for each in compared]
    findings: list[Finding] = []
    lost = [each for each in rest if each.lost]
    if lost and len(lost) == len(compared):
        findings.append(_nothing(pair, lost))
    acting = [each for each in rest if not each.lost]
    doubled = [each for each in acting if each.doubled]
    if doubled:
        findings.append(_double(pair, doubled, names))
    acting = [each for each in acting if not each.doubled]
    others = [each for each in acting if each.other]
    if others:
        findings += relocations(pair, [each.of for each in others], _fits(others), names)
    scaled = [each for each in acting if not each.other and _scaled(pair, each)]
    if scaled:
        findings.append(_scale(pair, scaled, compared))
    findings += _strange(pair)
    if of_a is not None and of_b is not None:  # else rung 4 says what is merged
        findings += _harmless(compared)
    return Looked(tuple(findings), tuple(_equal(compared, rest, scaled, others)), _unseen(both))


def training(pair: Pair) -> bool:
    """Whether both sides train, so that an update that is still zero says nothing."""
    return bool(pair.a.steps and pair.b.steps)


def initial(of: Snapshot) -> bool:
    """Whether it was taken before any training step."""
    return of.when == "use" and not of.step


def _given(pair: Pair) -> bool:
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


def _twice(applied: Applied) -> bool:
    return bool(applied.path) and bool(applied.merged)


def _rounded(first: Update, second: Update) -> bool:
    """Whether the factors of one are those of the other but for rounding to 16 bits."""
    if first.a.shape != second.a.shape:
        return False
    return all(
        bool(np.allclose(x, y, rtol=2.0**-7, atol=2.0**-9 * float(np.abs(y).max(initial=0.0))))
        for x, y in ((first.a, second.a), (first.b, second.b))
    )


def _tolerance(pair: Pair) -> float:
    """Of measured scales: modules in 16 bits round what they add."""
    dtypes = {each.dtype for _, side in pair.sides for each in side.weights}
    return 0.03 if any("16" in dtype for dtype in dtypes) else 2e-3


def _scaled(pair: Pair, each: Compared) -> bool:
    return abs(each.ratio - 1) > _tolerance(pair)


def _fits(compared: Sequence[Compared]) -> list[Fit]:
    return [each.fit for each in compared if each.fit is not None]


def _nothing(pair: Pair, lost: Sequence[Compared]) -> Finding:
    off = "B" if strength(lost[0].b) == 0 else "A"
    on = "A" if off == "B" else "B"
    dead = [each.b if off == "B" else each.a for each in lost]
    if all(each.norm == 0 for each in dead):
        why = "its factor B is zero, as one that was never trained or loaded"
    elif all(each.path == 0 for each in dead):
        why = "it is there, and nothing of it reaches the output (inactive, or scaled by 0)"
    else:
        why = "what it adds is taken away again"
    where = _where(pair, off)
    return Finding(
        RUNG,
        "factor",
        "attach",
        group([each.of.name for each in lost], [each.of.name for each in lost]),
        f"the adapter does nothing in {off}, at all {len(lost)} modules where it acts in {on}: "
        f"{why}",
        value=0.0,
        other=1.0,
        unit="share of the update",
        where=where,
        fix=f"attach and activate the adapter in {off}, and check that its weights were read",
        swap=Swap("attach"),
    )


def _double(pair: Pair, doubled: Sequence[Compared], names: Sequence[str]) -> Finding:
    letter = "B" if _twice(doubled[0].b) else "A"
    side = [each.b if letter == "B" else each.a for each in doubled]
    times = float(np.median([each.total / each.declared for each in side if each.declared]))
    places = [each.of.name for each in doubled]
    return Finding(
        RUNG,
        "factor",
        "double-apply",
        group(places, names),
        f"{letter} applies the update {number(times)} times: it is merged into the base weights "
        f"and still active beside them, at {group(places, names)}",
        value=times,
        other=1.0,
        unit="times the update",
        where=_where(pair, letter),
        fix="merge the adapter or leave it active, not both",
        swap=Swap("attach", tuple(places)),
    )


def _scale(pair: Pair, scaled: Sequence[Compared], among: Sequence[Compared]) -> Finding:
    places = [each.of.name for each in scaled]
    every = [each.of.name for each in among]
    ratios = np.array([each.ratio for each in scaled])
    middle = float(np.median(ratios))
    constant = bool(np.ptp(ratios) <= max(2 * _tolerance(pair), 0.01) * abs(middle))
    ranks = {each.of.name: ranks_of(pair, each.of.name) for each in among}
    by_rank = len({ranks[each.of.name] for each in among}) > 1 and (
        not constant or len(scaled) < len(among)
    )
    effect = _follows_rank(pair, scaled)
    a, b = (float(np.median([abs(_side(each, x).total) for each in scaled])) for x in "AB")
    if constant and not by_rank:
        words = (
            f"B's update is {number(middle)} times A's at {group(places, every)}: "
            f"{_told(pair, places[0], a, b, middle)}"
        )
    else:
        listed = Counter(f"{number(round(float(ratio), 4))}" for ratio in ratios)
        shown = ", ".join(f"{ratio} at {count}" for ratio, count in listed.most_common(4))
        why = ", and goes with the rank" if by_rank else ""
        words = (
            f"B's update is A's times a number that differs by module ({shown} modules){why}: "
            f"one scale was used where each module has its own"
        )
    return Finding(
        RUNG,
        "effect" if effect else "factor",
        "scale" if constant and not by_rank else "scale-pattern",
        group(places, every),
        words,
        value=middle,
        other=1.0,
        unit="times A's update",
        where=_where(pair, "B"),
        fix="scale B @ A alike in both, by alpha / rank unless it was trained otherwise",
        swap=Swap("scale", tuple(places)),
    )


def _follows_rank(pair: Pair, scaled: Sequence[Compared]) -> bool:
    """Whether the ranks differ and the scales follow from them by the same rule."""
    rules = []
    for each in scaled:
        ranks = ranks_of(pair, each.of.name)
        if ranks[0] is None or ranks[1] is None or ranks[0] == ranks[1]:
            return False
        named = [recipe(pair, each.of.name, x, _side(each, x).total) for x in "AB"]
        rules.append(named[0] is not None and named[0] == named[1])
    return all(rules)


def _told(pair: Pair, name: str, a: float, b: float, ratio: float) -> str:
    """Both scales and where they come from, as far as alpha and rank tell."""
    if abs(a - b) <= 1e-3 * max(a, b):
        return f"the scale is {number(a)} in both, and the factors differ by that number"
    said = []
    for letter, value in (("A", a), ("B", b)):
        rule = recipe(pair, name, letter, value)
        said.append(f"{letter} scales by {number(value)}" + (f" ({rule})" if rule else ""))
    return ", ".join(said)


def _side(compared: Compared, letter: str) -> Applied:
    return compared.a if letter == "A" else compared.b


def _strange(pair: Pair) -> list[Finding]:
    """Modules that add something that is no multiple of B @ A, on one side only."""
    of = {"A": adapter(pair.a), "B": adapter(pair.b)}
    odd = {
        letter: {
            name: module.unexplained
            for name, module in (snapshot.modules if snapshot is not None else {}).items()
            if module.unexplained is not None and module.unexplained > UNEXPLAINED
        }
        for letter, snapshot in of.items()
    }
    found = []
    for letter, other in (("A", "B"), ("B", "A")):
        places = [name for name in odd[letter] if name not in odd[other]]
        snapshot = of[letter]
        if not places or snapshot is None or of[other] is None:
            continue
        value = max(odd[letter][name] or 0.0 for name in places)
        found.append(
            Finding(
                RUNG,
                "factor",
                "implementation",
                group(places, snapshot.modules),
                f"{letter} adds something other than a multiple of B @ A at "
                f"{group(places, snapshot.modules)}: up to {value:.0%} of it is not explained by "
                f"its factors",
                value=value,
                floor=UNEXPLAINED,
                unit="share of what is added",
                where=snapshot.where,
            )
        )
    return found


def _harmless(compared: Sequence[Compared]) -> list[Finding]:
    """Differences in how, not in what."""
    how: list[tuple[str, list[str]]] = []
    same = [each for each in compared if each.of.equal or _same(each)]
    merged = [each.of.name for each in same if bool(each.a.merged) != bool(each.b.merged)]
    how.append(
        ("the update is merged into the weights on one side and added on the other: equal", merged)
    )
    gauge = [
        each.of.name
        for each in same
        if each.fit is not None
        and each.of.name not in merged
        and (abs(each.fit.ratio - 1) > 1e-3 or not each.of.same_factors)
        and each.fit.residual <= SAME
    ]
    how.append(("factors or scales differ and their product is the same", gauge))
    rounded = [
        each.of.name
        for each in same
        if each.fit is not None and SAME < each.fit.residual <= ROUNDED
    ]
    how.append(("factors differ by rounding to 16 bits", rounded))
    every = [each.of.name for each in compared]
    return [
        Finding(
            RUNG,
            "harmless",
            "implementation",
            group(places, every),
            f"{words}, at {group(places, every)}",
        )
        for words, places in how
        if places
    ]


def _same(each: Compared) -> bool:
    return not each.lost and not each.other and abs(each.ratio - 1) <= 2e-3


def _equal(
    compared: Sequence[Compared],
    rest: Sequence[Compared],
    scaled: Sequence[Compared],
    others: Sequence[Compared],
) -> list[str]:
    wrong = {id(each) for each in (*scaled, *others)} | {
        id(each) for each in rest if each.lost or each.doubled
    }
    same = [each for each in compared if id(each) not in wrong]
    if not same:
        return []
    if any(each.fit is not None for each in same):
        return [f"effective updates equal: {len(same)} of {len(compared)} modules"]
    return [f"scales equal: {len(same)} of {len(compared)} modules"]


def _unseen(both: Sequence[Operator]) -> tuple[str, ...]:
    blind = [op for op in both if op.a and op.b and op.blind]
    if not blind:
        return ()
    return (
        f"effective updates at {len(blind)} of {len(both)} modules: their factors were not kept",
    )


def _where(pair: Pair, letter: str) -> str | None:
    snapshot = adapter(pair.a if letter == "A" else pair.b)
    return None if snapshot is None else snapshot.where
