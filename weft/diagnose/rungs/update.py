"""Rung 5: the updates themselves, `scale * B @ A`, by low-rank algebra.

What counts is what acts: the scale at which an update is added beside the base plus that at which
the base contains it. Factors are never compared as such, since many make the same update.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from weft.diagnose.compare.algebra import Fit
from weft.diagnose.compare.operators import Applied, Operator, adapter, operators, ranks_of
from weft.diagnose.compare.places import group, number
from weft.diagnose.compare.recipes import recipe
from weft.diagnose.finding import Finding, Looked, Swap
from weft.diagnose.rungs.compared import (
    ROUNDED,
    SAME,
    Compared,
    at_first_step,
    compare,
    given,
    initial,
    strength,
    training,
    twice,
)
from weft.diagnose.rungs.relocation import relocations
from weft.diagnose.sides.evidence import Pair
from weft.diagnose.words import counted

RUNG = 5

UNEXPLAINED = 0.05
"""A module that adds more than this beside a multiple of B @ A computes something else."""


def look(pair: Pair) -> Looked:
    """Ratio, cosine and residual of the updates of each module."""
    if pair.a.kind == "config":  # it says so itself
        return Looked()
    of_a, of_b = adapter(pair.a), adapter(pair.b)
    if of_a is None and of_b is None:
        return Looked(unseen=("effective updates: no adapter was seen on either side",))
    both = [op for op in operators(pair) if op.a is not None and op.b is not None]
    later = training(pair)
    fresh = all(each is not None and initial(each) for each in (of_a, of_b)) and given(pair)
    compared = [made for op in both if (made := compare(op, later, fresh)) is not None]
    broken = list(_not_finite(pair, both))
    if not compared:
        unseen = () if broken else ("effective updates: no module acts on both sides",)
        return Looked(tuple(at_first_step(pair, broken)), unseen=unseen or _unseen(both))
    rest = [each for each in compared if not (each.of.equal or each.of.rounded_away)]
    names = [each.of.name for each in compared]
    findings = broken
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
    findings = at_first_step(pair, findings)
    return Looked(tuple(findings), tuple(_equal(compared, rest, scaled, others)), _unseen(both))


def _not_finite(pair: Pair, both: Sequence[Operator]) -> Iterator[Finding]:
    """Modules whose factors are not finite on one side only: no algebra says more of them."""
    every = [op.name for op in both]
    for letter, other in ("AB", "BA"):
        places = [op.name for op in both if not _at(op, letter).finite and _at(op, other).finite]
        if places:
            yield Finding(
                RUNG,
                "factor",
                "overflow",
                group(places, every),
                f"factors of the adapter are not finite in {letter}, and are in {other}, at "
                f"{group(places, every)}",
                value=float(len(places)),
                unit="modules",
                where=_where(pair, letter),
                fix=f"look in {letter} for the step at which training stopped being finite",
                swap=Swap("adapter", tuple(places)),
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
    letter = "B" if twice(doubled[0].b) else "A"
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
        swap=Swap("base", tuple(places)),  # what is active beside it is the same in both
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
    a, b = (float(np.median([abs(_side(each, x).total) for each in scaled])) for x in "AB")
    from_start = training(pair) and abs(a - b) <= 1e-3 * max(a, b)  # rung 4: norms of the start
    effect = from_start or _follows_rank(pair, scaled)
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
    """Whether the ranks differ and one alpha gives both scales, by alpha / rank or its root."""
    for each in scaled:
        a, b = ranks_of(pair, each.of.name)
        if a is None or b is None or a == b or not each.a.total:
            return False
        ratio, by_rank = each.b.total / each.a.total, a / b
        if not any(abs(ratio / by_rank**power - 1) <= 0.01 for power in (0.5, 1.0)):
            return False
    return True


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
        return [f"effective updates equal: {len(same)} of {counted(len(compared), 'module')}"]
    return [f"scales equal: {len(same)} of {counted(len(compared), 'module')}"]


def _unseen(both: Sequence[Operator]) -> tuple[str, ...]:
    blind = [op for op in both if op.a and op.b and op.blind]
    broken = [op for op in blind if not _at(op, "A").finite or not _at(op, "B").finite]
    whys = {"their factors are not finite": len(broken)}
    whys["their factors were not kept"] = len(blind) - len(broken)
    return tuple(
        f"effective updates at {count} of {counted(len(both), 'module')}: {why}"
        for why, count in whys.items()
        if count
    )


def _at(op: Operator, letter: str) -> Applied:
    found = op.a if letter == "A" else op.b
    assert found is not None
    return found


def _where(pair: Pair, letter: str) -> str | None:
    snapshot = adapter(pair.a if letter == "A" else pair.b)
    return None if snapshot is None else snapshot.where
