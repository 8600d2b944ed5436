"""Pairing things of A with things of B: by equal keys, by containment, by order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Ids = tuple[int, ...]
ThingT = TypeVar("ThingT")

AKIN = 0.3
"""Rows that share less than this of their own contents are rows of different records."""


@dataclass(frozen=True)
class Matching(Generic[ThingT]):
    """Things of A and B that belong together, in A's order, and those without a partner."""

    pairs: tuple[tuple[ThingT, ThingT], ...] = ()
    only_a: tuple[ThingT, ...] = ()
    only_b: tuple[ThingT, ...] = ()
    exact: int = 0
    """How many pairs are the same without padding."""


def matched(
    a: Sequence[ThingT],
    b: Sequence[ThingT],
    key: Callable[[ThingT], tuple],
    contained: Callable[[tuple, tuple], bool] | None = None,
) -> Matching[ThingT]:
    """Equal keys first, those that contain one another next, and what is left by order."""
    partner: dict[int, int] = {}
    free: dict[tuple, list[int]] = defaultdict(list)
    for j, thing in enumerate(b):
        free[key(thing)].append(j)
    for i, thing in enumerate(a):
        if free[key(thing)]:
            partner[i] = free[key(thing)].pop(0)
    exact = len(partner)
    inside = contained or contains
    left_b = [j for j in range(len(b)) if j not in set(partner.values())]
    for i in range(len(a)):
        if i not in partner:
            found = next((j for j in left_b if inside(key(a[i]), key(b[j]))), None)
            if found is not None:
                left_b.remove(found)
                partner[i] = found
    left_a = [i for i in range(len(a)) if i not in partner]
    partner |= dict(zip(left_a, left_b, strict=False))
    return Matching(
        pairs=tuple((a[i], b[partner[i]]) for i in sorted(partner)),
        only_a=tuple(a[i] for i in left_a[len(left_b) :]),
        only_b=tuple(b[j] for j in left_b[len(left_a) :]),
        exact=exact,
    )


def akin(
    a: Sequence[ThingT], b: Sequence[ThingT], key: Callable[[ThingT], tuple]
) -> list[tuple[ThingT, ThingT]]:
    """Things that share at least `AKIN` of what is not in most of their kind, the closest first."""
    common = _in_most([key(each) for each in a]) | _in_most([key(each) for each in b])
    own_a, own_b = ([Counter(x for x in key(t) if x not in common) for t in s] for s in (a, b))
    shares = [
        ((one & other).total() / max(one.total(), other.total(), 1), -abs(i - j), i, j)
        for i, one in enumerate(own_a)
        for j, other in enumerate(own_b)
    ]
    found: dict[int, int] = {}
    for share, _, i, j in sorted(shares, reverse=True):
        if share >= AKIN and i not in found and j not in found.values():
            found[i] = j
    return [(a[i], b[j]) for i, j in sorted(found.items())]


def _in_most(keys: Sequence[tuple]) -> set[object]:
    """What at least half of three or more things have: the frame of a template."""
    counts = Counter(x for key in keys for x in set(key))
    return {x for x, count in counts.items() if 2 * count >= len(keys)} if len(keys) > 2 else set()


def contains(one: tuple, other: tuple) -> bool:
    """Whether the longer is the shorter with one insertion, or the shorter with a frame."""
    short, long = sorted((one, other), key=len)
    if not short:
        return False
    prefix = next((i for i, x in enumerate(short) if x != long[i]), len(short))
    suffix = next((i for i, x in enumerate(reversed(short)) if x != long[-1 - i]), len(short))
    if prefix + suffix >= len(short):
        return True
    width = len(short)
    return any(long[i : i + width] == short for i in range(len(long) - width + 1))


def stripped(ids: Ids, pads: Collection[int]) -> Ids:
    """`ids` without those of `pads` at either end."""
    start, stop = 0, len(ids)
    while start < stop and ids[start] in pads:
        start += 1
    while stop > start and ids[stop - 1] in pads:
        stop -= 1
    return ids[start:stop]
