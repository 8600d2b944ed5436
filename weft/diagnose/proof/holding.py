"""Weights of moments with another's updates, and whether two of them are the same."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np

from weft.diagnose.proof.replica import BaseValue, Moment, Replica, Update, Updates


def by_moment(to: Replica, other: Replica, given: Callable[[Moment, Moment], Moment]) -> Replica:
    """A replica whose every moment is given something of the other's."""
    theirs = other.moments
    return to.at_each(lambda number, mine: given(mine, theirs[number]))


def holding(moment: Moment, beside: Updates, merged: Updates) -> Moment:
    """A moment with other updates; what was recorded of its weights is not true of new ones."""
    base = moment.base
    if merged is not base.merged and (merged or base.merged):
        base = replace(base, merged=merged, digests={})
    return replace(moment, adapter=beside, base=base)


def tying(mine: Moment, its: Moment, places: Collection[str]) -> Moment:
    """A moment whose head is its embedding, or a tensor of its own, as the other's is.

    Without places its own tensor is that of heads that the other has changed; what neither names is
    in the file that the base is loaded from.
    """
    x, y = mine.base, its.base
    if x.tied == y.tied or x.tied is None or y.tied is None:
        return mine
    names = places or {n for n in (*x.changed, *y.changed) if n.split(".")[-2:-1] == ["lm_head"]}
    changed = {n: each for n, each in x.changed.items() if n not in names}
    changed |= {n: each for n, each in y.changed.items() if n in names}
    return replace(mine, base=replace(x, tied=y.tied, changed=changed, digests={}))


def totalled(mine: Moment, its: Moment, places: Collection[str]) -> Moment:
    """A moment whose updates add up to the other's scales, where its own are."""
    beside, merged = dict(mine.adapter), dict(mine.base.merged)
    names = {**beside, **merged}.keys() & {**its.adapter, **its.base.merged}.keys()
    for name in [each for each in places if each in names] or names:
        own, wanted = (_total(each, name) for each in (mine, its))
        if own == wanted:
            continue
        for held in (beside, merged):
            if name in held:
                held[name] = replace(held[name], scale=held[name].scale * (wanted / (own or 1.0)))
        if own == 0:
            held = beside if name in beside else merged
            held[name] = replace(held[name], scale=wanted)
    if same_updates(beside, mine.adapter) and same_updates(merged, mine.base.merged):
        return mine
    return holding(mine, beside, merged)


def _total(moment: Moment, name: str) -> float:
    parts = (moment.adapter.get(name), moment.base.merged.get(name))
    return sum(each.scale for each in parts if each is not None)


def placed(mine: Updates, its: Updates, places: Collection[str]) -> Updates:
    """The other's updates at places, of all modules without them."""
    names = [each for each in places if each in mine or each in its] or list({**mine, **its})
    made = {name: each for name, each in mine.items() if name not in names}
    made |= {name: its[name] for name in names if name in its}
    return mine if same_updates(mine, made) else made


def scaled(mine: Updates, its: Updates, places: Collection[str]) -> Updates:
    """The other's scales where both adapt a module."""
    both = mine.keys() & its.keys()
    names = [each for each in places if each in both] or list(both)
    made = {
        name: replace(each, scale=its[name].scale) if name in names else each
        for name, each in mine.items()
    }
    return mine if same_updates(mine, made) else made


def same_updates(mine: Updates, its: Updates) -> bool:
    """Whether two adapters hold the same numbers."""
    return mine.keys() == its.keys() and all(_same(mine[name], its[name]) for name in mine)


def _same(x: Update, y: Update) -> bool:
    return x.scale == y.scale and np.array_equal(x.a_RI, y.a_RI) and np.array_equal(x.b_OR, y.b_OR)


def same_weights(mine: BaseValue, its: BaseValue) -> bool:
    """Whether two bases are one, as far as was recorded."""
    if mine.digests and its.digests and mine.dtype == its.dtype:
        return mine.digests == its.digests
    same = (mine.load, mine.tied) == (its.load, its.tied) and same_updates(mine.merged, its.merged)
    return (
        same
        and mine.changed.keys() == its.changed.keys()
        and all(np.array_equal(mine.changed[name], its.changed[name]) for name in mine.changed)
    )
