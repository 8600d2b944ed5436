"""Exchanges between replicas: one factor of a replica is given the value that another has.

A swap returns the replica itself where the other's value is its own already, so that a factor in
which two replicas do not differ is seen at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from weft.diagnose.proof.holding import (
    by_moment,
    holding,
    placed,
    same_updates,
    same_weights,
    scaled,
    totalled,
    tying,
)
from weft.diagnose.proof.replica import (
    Lesson,
    Micro,
    Moment,
    Replica,
    Updates,
)

Function = Callable[[Replica, Replica, Collection[str], int | None], Replica]


def ids(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """The token ids of prompts; padding and positions by one's own rule."""
    rows = tuple(
        replace(mine, prompt=its.prompt, held=() if mine.prompt != its.prompt else mine.held)
        for mine, its in zip(to.rows, other.rows, strict=True)
    )
    to = to if rows == to.rows else to.with_(rows=rows)
    return _batches(to, other)


def mask(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """Whether padding is open to attention, in prompts and in decoding."""
    rows = tuple(
        replace(mine, attended=its.attended) for mine, its in zip(to.rows, other.rows, strict=True)
    )
    to = to if rows == to.rows else to.with_(rows=rows)
    if to.context.masked != other.context.masked:
        to = to.with_(context=replace(to.context, masked=other.context.masked))
    return _inputs(to, other, "mask_BT")


def positions(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """The rule of positions, in prompts and in the decoding steps that go on from them."""
    rows = tuple(
        replace(
            mine, rule=its.rule, held=its.held if len(its.held) in (0, len(mine.ids)) else mine.held
        )
        for mine, its in zip(to.rows, other.rows, strict=True)
    )
    to = to if rows == to.rows else to.with_(rows=rows)
    mine, its_context = to.context, other.context
    going = replace(mine, shift=its_context.shift, origin=its_context.origin)
    to = to if going == mine else to.with_(context=going)
    return _inputs(to, other, "positions_BT")


def base(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """The weights of the base; dtype and attention stay one's own."""

    def given(mine: Moment, its: Moment) -> Moment:
        if same_weights(mine.base, its.base):
            return mine
        x, y = mine.base, its.base
        made = replace(
            x,
            load=y.load,
            changed=y.changed,
            config=y.config,
            digests=y.digests,
            merged=y.merged,
            tied=y.tied,
        )
        return replace(mine, base=made)

    return by_moment(to, other, given)


def tied(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """Whether the head is the embedding; if not, the head's own weights."""
    return by_moment(to, other, lambda mine, its: tying(mine, its, places))


def dtype(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """The dtype of the base and its implementation of attention."""

    def given(mine: Moment, its: Moment) -> Moment:
        x, y = mine.base, its.base
        if (x.dtype, x.attention) == (y.dtype, y.attention):
            return mine
        return replace(mine, base=replace(x, dtype=y.dtype, attention=y.attention))

    return by_moment(to, other, given)


def adapter(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """The updates of modules, whole: factors and scale; of all modules without places.

    With an update goes whether it is in the weights, or beside them.
    """

    def given(mine: Moment, its: Moment) -> Moment:
        beside = placed(mine.adapter, its.adapter, places)
        merged = placed(mine.base.merged, its.base.merged, places)
        return holding(mine, beside, merged)

    to = by_moment(to, other, given)
    if to.course is None or other.course is None:
        return to
    start = placed(to.course.start, other.course.start, places)
    return to if start is to.course.start else _taught(to, start=start)


def scale(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """What multiplies B A, where both sides adapt a module.

    Of an update that is in the weights on one side, that is the sum of what is there and beside.
    """

    def given(mine: Moment, its: Moment) -> Moment:
        if not mine.base.merged and not its.base.merged:
            return holding(mine, scaled(mine.adapter, its.adapter, places), {})
        return totalled(mine, its, places)

    to = by_moment(to, other, given)
    if to.course is None or other.course is None:
        return to
    start = scaled(to.course.start, other.course.start, places)
    return to if start is to.course.start else _taught(to, start=start)


def init(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """The factors that training starts from; one's own scale."""
    if to.course is None or other.course is None:
        return adapter(to, other, places, step)
    mine, its = to.course.start, other.course.start
    start = {
        name: replace(each, scale=mine[name].scale if name in mine else each.scale)
        for name, each in its.items()
    }
    return to if same_updates(mine, start) else _taught(to, start=start)


def context(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """How decoding steps are fed."""
    its = replace(other.context, masked=to.context.masked)
    return to if to.context == its else to.with_(context=its)


def sampler(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """How a token is chosen."""
    return to if to.sampler == other.sampler else to.with_(sampler=other.sampler)


def stop(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """When a completion ends."""
    return to if to.stop == other.stop else to.with_(stop=other.stop)


def seed(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """The seed of draws, and what training drew: factors of one size to start from, the order."""
    to = to if to.seed == other.seed else to.with_(seed=other.seed)
    if to.course is None or other.course is None:
        return to
    drawn = _of_one_size(to.course.start, other.course.start)
    return order(init(to, other, (), None) if drawn else to, other, (), None)


def _of_one_size(mine: Updates, its: Updates) -> bool:
    """Whether two starts can be draws of one distribution: forms and norms of their factors."""

    def near(x: np.ndarray, y: np.ndarray) -> bool:
        norms = float(np.linalg.norm(x)), float(np.linalg.norm(y))
        return x.shape == y.shape and abs(norms[0] - norms[1]) <= SPREAD * max(norms)

    return mine.keys() == its.keys() and all(
        near(mine[name].a_RI, its[name].a_RI) and near(mine[name].b_OR, its[name].b_OR)
        for name in mine
    )


SPREAD = 0.25
"""Relative difference of the norms of two draws of few numbers."""


def mode(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """Whether dropout is at work."""
    return to if to.dropping == other.dropping else to.with_(dropping=other.dropping)


def labels(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """Which tokens are asked for, on rows that both sides train on."""
    return _inputs(to, other, "labels_BT")


def order(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """Which rows make up the batch of a step, with their labels."""
    return _batches(to, other)


def normaliser(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """What the losses of a step are divided by."""
    if to.course is None or other.course is None:
        return to
    mine, its = to.course, other.course
    if (mine.normaliser, mine.factor) == (its.normaliser, its.factor):
        return to
    return _taught(to, normaliser=its.normaliser, factor=its.factor)


def optimiser(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """The rule of updates, its settings, and the learning rate of each step."""
    if to.course is None or other.course is None:
        return to
    its = other.course.optimiser
    made = to if to.course.optimiser == its else _taught(to, optimiser=its)
    return _rates(made, other)


def schedule(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """When the adapter goes into the weights or begins anew, and how the learning rate goes.

    Of places, `optimiser.lr` is the rates alone.
    """
    if to.course is None or other.course is None:
        return to
    made = _rates(to, other)
    if set(places) == {"optimiser.lr"}:
        return made
    assert made.course is not None
    mine, its = made.course.turns, other.course.turns
    same = [(each.what, each.after) for each in mine] == [(each.what, each.after) for each in its]
    return made if same else _taught(made, turns=its)


def _rates(to: Replica, other: Replica) -> Replica:
    assert to.course is not None and other.course is not None
    rates = [each.lr for each in other.course.lessons] or [0.0]
    lessons = tuple(
        replace(each, lr=rates[min(n, len(rates) - 1)]) for n, each in enumerate(to.course.lessons)
    )
    same = [each.lr for each in lessons] == [each.lr for each in to.course.lessons]
    return to if same else _taught(to, lessons=lessons)


def trainable(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """What training may move: the adapter, the base."""
    if to.course is None or other.course is None:
        return to
    mine, its = to.course, other.course
    start = {
        name: replace(each, trainable=its.start[name].trainable) if name in its.start else each
        for name, each in mine.start.items()
    }
    same = (mine.trains_base, mine.trains_adapter) == (its.trains_base, its.trains_adapter)
    if same and all(each.trainable == mine.start[name].trainable for name, each in start.items()):
        return to
    return _taught(to, start=start, trains_base=its.trains_base, trains_adapter=its.trains_adapter)


def settings(to: Replica, other: Replica, places: Collection[str], step: int | None) -> Replica:
    """Settings of a run of Weft, by their keys."""
    if to.setup is None or other.setup is None:
        return to
    made = to.setup.with_(places, other.setup)
    return to if made is to.setup else to.with_(setup=made)


SWAPS: Mapping[str, Function] = {
    "prompt": ids,
    "ids": ids,
    "mask": mask,
    "positions": positions,
    "base": base,
    "tied": tied,
    "dtype": dtype,
    "adapter": adapter,
    "scale": scale,
    "attach": adapter,
    "init": init,
    "context": context,
    "mode": mode,
    "sampler": sampler,
    "stop": stop,
    "seed": seed,
    "labels": labels,
    "normaliser": normaliser,
    "order": order,
    "optimiser": optimiser,
    "schedule": schedule,
    "trainable": trainable,
    "settings": settings,
}
"""By the factor that a finding names."""


def _taught(to: Replica, **changes: object) -> Replica:
    assert to.course is not None
    return to.with_(course=replace(to.course, **changes))  # type: ignore[arg-type]


def _batches(to: Replica, other: Replica) -> Replica:
    """One's own course on the other's batches."""
    if to.course is None or other.course is None:
        return to
    mine, its = to.course.lessons, other.course.lessons
    if len(mine) == len(its) and all(map(_same_rows, mine, its)):
        return to
    lessons = tuple(replace(each, lr=mine[min(n, len(mine) - 1)].lr) for n, each in enumerate(its))
    return _taught(to, lessons=lessons)


def _same_rows(x: Lesson, y: Lesson) -> bool:
    return sorted(_texts(x)) == sorted(_texts(y))


def _texts(lesson: Lesson) -> list[tuple[int, ...]]:
    return [text for micro in lesson.micros for text in map(_text, *_open(micro))]


def _open(micro: Micro) -> tuple[np.ndarray, np.ndarray]:
    mask = micro.mask_BT
    return micro.ids_BT, np.ones_like(micro.ids_BT) if mask is None else mask


def _text(ids_T: np.ndarray, mask_T: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in ids_T[mask_T != 0])


def _inputs(to: Replica, other: Replica, name: str) -> Replica:
    """One's own training batches with the other's labels, mask or positions, row by row."""
    if to.course is None or other.course is None:
        return to
    lessons, changed = [], False
    for mine, its in zip(to.course.lessons, other.course.lessons, strict=False):
        micros = _matched(mine, its, name)
        changed = changed or any(x is not y for x, y in zip(micros, mine.micros, strict=True))
        lessons.append(replace(mine, micros=micros))
    lessons += to.course.lessons[len(lessons) :]
    return _taught(to, lessons=tuple(lessons)) if changed else to


def _matched(mine: Lesson, its: Lesson, name: str) -> tuple[Micro, ...]:
    by_ids = {
        tuple(ids_T.tolist()): value[min(n, len(value) - 1)]
        for micro in its.micros
        if (value := getattr(micro, name)) is not None
        for n, ids_T in enumerate(micro.ids_BT)
    }
    found = []
    for micro in mine.micros:
        rows = [by_ids.get(tuple(ids_T.tolist())) for ids_T in micro.ids_BT]
        if any(row is None for row in rows):
            found.append(micro)
            continue
        made = np.stack([row for row in rows if row is not None])
        own = getattr(micro, name)
        same = own is not None and np.array_equal(np.broadcast_to(own, made.shape), made)
        found.append(micro if same else _with(micro, name, made))
    return tuple(found)


def _with(micro: Micro, name: str, made: np.ndarray) -> Micro:
    changed: dict[str, Any] = {name: made}
    return replace(micro, **changed)
