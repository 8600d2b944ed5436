"""Updates that differ in more than a number: moved to another module, reordered, or others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from weft.diagnose.compare.algebra import (
    Fit,
    Update,
    column_norms,
    fit,
    row_norms,
    same_numbers,
)
from weft.diagnose.compare.operators import Operator, adapter, factors
from weft.diagnose.compare.places import group, number
from weft.diagnose.finding import Finding, Swap
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.runs.sketch import probes

RUNG = 5


def relocations(
    pair: Pair, others: Sequence[Operator], fits: Sequence[Fit], among: Sequence[str]
) -> Iterator[Finding]:
    """One finding for each way in which `others` came to have another update in B than in A."""
    left = list(others)
    moved = {op.name: source for op in left if (source := _moved_from(pair, op)) is not None}
    if moved:
        yield _key_map(pair, moved, among)
        left = [op for op in left if op.name not in moved]
    permuted = {op.name: how for op in left if (how := _reordered(op)) is not None}
    if permuted:
        yield _layout(pair, permuted, among)
        left = [op for op in left if op.name not in permuted]
    if left:
        kept = {op.name for op in left}
        known = [each for op, each in zip(others, fits, strict=False) if op.name in kept]
        yield _checkpoint(pair, [op.name for op in left], known, among)


def _moved_from(pair: Pair, op: Operator) -> tuple[str, str] | None:
    """Where in A stands what B has here, and what of it (`A and B`, `A`, `B`); None: nowhere."""
    of_a, of_b = adapter(pair.a), adapter(pair.b)
    if of_a is None or of_b is None or op.b is None or op.a is None:
        return None
    for what, part in (("A and B", slice(0, 2)), ("B", slice(1, 2)), ("A", slice(0, 1))):
        here, own = op.b.digests[part], op.a.digests[part]
        for name, module in of_a.modules.items():
            there = (module.digest_a, module.digest_b)[part]
            if name != op.name and there == here != own and module.norm_b > 0:
                return name, what
    if op.b.update is None:
        return None
    here_OK = _sketch(op.b.update)
    for name, (update, there_OK) in _sketches(pair.a).items():
        if name == op.name or update.shape != op.b.update.shape:
            continue
        if float((here_OK * there_OK).sum()) > 0.99:
            found = fit(update, op.b.update)
            if found.residual < 5e-3 and found.ratio > 0:
                return name, "A and B"
    return None


def _sketch(update: Update) -> np.ndarray:
    """What an update makes of a few fixed inputs, of norm 1: the same for all of its factors."""
    made = update.on(probes(update.shape[1]))
    return made / max(float(np.linalg.norm(made)), 1e-30)


@lru_cache(maxsize=2)
def _sketches(side: Evidence) -> dict[str, tuple[Update, np.ndarray]]:
    """Of every module whose update is not zero."""
    of = adapter(side)
    found = {}
    for name, module in (of.modules if of is not None else {}).items():
        update = factors(side, module)
        if update is not None and module.norm_b > 0:
            found[name] = update, _sketch(update)
    return found


def _reordered(op: Operator) -> str | None:
    """How the numbers of A's update lie in another order in B's; None where they are others."""
    a, b = op.a, op.b
    if a is None or b is None or a.update is None or b.update is None:
        return None
    for what, one, other in (("B", a.update.b, b.update.b), ("A", a.update.a, b.update.a)):
        if _same_order(one, other):
            continue
        if same_numbers(one, other):
            return f"factor {what} holds the same numbers in another order{_rule(one, other)}"
    for what, lengths in (("rows", row_norms), ("columns", column_norms)):
        if _permuted(lengths, a.update, b.update):
            return f"the {what} of the update are the same in another order"
    return None


def _same_order(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-4, atol=1e-7))


def _rule(one: np.ndarray, other: np.ndarray) -> str:
    """Which order: read as transposed, rows or columns reversed or permuted; else empty."""
    if one.size == other.size and _same_order(one.T.reshape(other.shape), other):
        return ": it was read as its transpose"
    if one.shape != other.shape:
        return ""
    if same_numbers(one[:, 0], other[:, 0]) and same_numbers(one[:, -1], other[:, -1]):
        return ": its rows are permuted"
    if same_numbers(one[0], other[0]) and same_numbers(one[-1], other[-1]):
        return ": its columns are permuted"
    return ""


def _permuted(lengths: Callable[[Update], np.ndarray], one: Update, other: Update) -> bool:
    x, y = lengths(one), lengths(other)
    if x.shape != y.shape or np.allclose(x, y, rtol=1e-4):
        return False
    return bool(np.allclose(np.sort(x), np.sort(y), rtol=1e-4, atol=1e-6 * x.max(initial=0.0)))


def _key_map(pair: Pair, moved: dict[str, tuple[str, str]], among: Sequence[str]) -> Finding:
    places = list(moved)
    source, what = moved[places[0]]
    swapped = [name for name in places if moved.get(moved[name][0], ("", ""))[0] == name]
    example = f"{places[0]} has what belongs to {source}"
    if what != "A and B":
        example += f" (factor {what})"
    return Finding(
        RUNG,
        "factor",
        "key-map",
        group(places, among),
        f"factors stand at other modules in B than in A, at {group(places, among)}: {example}"
        + (", and the other way round" if swapped else ""),
        value=float(len(places)),
        unit="modules",
        where=_where(pair),
        fix="check how keys of the adapter file are turned into names of modules",
        swap=Swap("adapter", tuple(places)),
    )


def _layout(pair: Pair, permuted: dict[str, str], among: Sequence[str]) -> Finding:
    places = list(permuted)
    by_way = defaultdict(list)
    for name, how in permuted.items():
        by_way[how].append(name)
    how = max(by_way, key=lambda way: len(by_way[way]))
    return Finding(
        RUNG,
        "factor",
        "layout",
        group(places, among),
        f"the layout of the update differs at {group(places, among)}: in B, {how}",
        value=float(len(places)),
        unit="modules",
        where=_where(pair),
        fix="check the order of dimensions in which the factors are read or joined",
        swap=Swap("adapter", tuple(places)),
    )


def _checkpoint(
    pair: Pair, places: Sequence[str], fits: Sequence[Fit], among: Sequence[str]
) -> Finding:
    of_a, of_b = adapter(pair.a), adapter(pair.b)
    loads = [each.load for each in (of_a, of_b) if each is not None]
    came = f"; A's came from {loads[0]}, B's from {loads[1]}" if len(set(loads)) == 2 else ""
    cosines = np.array([each.cosine for each in fits])
    ratio = float(np.median([each.other / each.norm for each in fits if each.norm] or [1.0]))
    middle = float(np.median(cosines)) if len(cosines) else 0.0
    return Finding(
        RUNG,
        "factor",
        "checkpoint",
        group(places, among),
        f"B has another adapter than A at {group(places, among)}: cosine of the updates "
        f"{number(middle)} (median), norm {number(ratio)} times{came}",
        value=1 - middle,
        other=ratio,
        unit="1 - cosine",
        where=_where(pair),
        fix="load the same adapter file in both",
        swap=Swap("adapter", tuple(places)),
    )


def _where(pair: Pair) -> str | None:
    of_b = adapter(pair.b)
    return None if of_b is None else of_b.where
