"""What noise alone does to the distances between replicas, measured afresh: null transforms.

Reference, section 6: of the transforms that must not matter, repeat and one unit in the last place,
and those others in which the sides differ.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from weft.core.keys import Key
from weft.diagnose.compare.noise import EPSILON
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.measures import Measure, mean_kl, predicted
from weft.diagnose.proof.replica import Course, Moment, Replica
from weft.diagnose.proof.training import distance, learn

DRAWS = 5
QUANTILE = 0.99

NATS = 1e-9
"""Divergences below this are not resolved by float32 log-probabilities."""

RELATIVE = 1e-7
"""Relative distances of updates below this are not resolved by float32 factors."""


Null = Literal["split", "left", "right"]
"""A batch in two forwards; padding before rows, and after them."""

PADDED = 5
"""Columns of padding that a null adds."""

FAILED = 2e-5
"""Nats that no transform makes of rounding in float32: one that does matters, and is no noise."""


@dataclass(frozen=True)
class Floor:
    """The 99th percentile of null draws."""

    value: float
    draws: tuple[float, ...]
    failed: tuple[str, ...] = ()  # nulls that are more than noise here, in words

    @classmethod
    def of(cls, draws: Sequence[float], least: float) -> Floor:
        """At least what arithmetic resolves."""
        return cls(max(least, float(np.quantile(draws, QUANTILE))), tuple(draws))


def reading_floor(
    engine: Engine,
    a: Replica,
    b: Replica,
    measure: Measure,
    key: Key,
    *,
    nulls: Collection[Null] = (),
    merging: bool = True,
) -> Floor:
    """Mean KL in nats between a replica and itself under nulls.

    `nulls`: in which of them the sides differ. One that fails in float32 is a finding and no slack;
    in 16 bits it counts no more than what it is in float32 becomes by coarser rounding.
    `merging`: whether it makes no difference that an update is merged, as long as it is not lost.
    """
    own = predicted(engine, a, measure)
    draws = [
        mean_kl(own, predicted(engine, a, measure, nudge=key.fold("ulp", draw)))
        for draw in range(DRAWS)
    ]
    draws.append(mean_kl(own, predicted(engine, a, measure, most=1)))
    failed = []
    for null in sorted(nulls):
        value, exact = _drawn(engine, a, measure, null)
        if exact > FAILED:
            failed.append(f"{WORDS[null]} changes what {a.name} predicts: {exact:.2g} nats")
        draws.append(min(value, max(min(exact, FAILED), NATS) * _coarser(a)))
    other = a.at_each(partial(_attending, b))
    if other is not a:
        draws.append(mean_kl(own, predicted(engine, other, measure)))
    if merging and _acting(a) != _acting(b):  # one of them may have its adapter in the weights
        draws.append(mean_kl(own, predicted(engine, engine.merged(a), measure)))
    return replace(Floor.of(draws, NATS), failed=tuple(failed))


WORDS: dict[Null, str] = {
    "split": "reading prompts in two forwards",
    "left": "padding before prompts",
    "right": "padding after prompts",
}


def _drawn(engine: Engine, a: Replica, measure: Measure, null: Null) -> tuple[float, float]:
    """Nats between a replica and itself under a null, and the same in float32."""
    most = (len(a.rows) + 1) // 2 if null == "split" else None
    pad = (PADDED * (null == "left"), PADDED * (null == "right"))

    def apart(replica: Replica) -> float:
        plain = predicted(engine, replica, measure)
        return mean_kl(plain, predicted(engine, replica, measure, most=most, pad=pad))

    value = apart(a)
    wide = in_float32(a)
    return value, value if wide is a else apart(wide)


def in_float32(replica: Replica) -> Replica:
    """With bases in 16 bits in float32."""

    def wide(number: int, moment: Moment) -> Moment:
        if _dtype(moment) not in ("bfloat16", "float16"):
            return moment
        return replace(moment, base=replace(moment.base, dtype="float32"))

    return replica.at_each(wide)


def _coarser(replica: Replica) -> float:
    """How many times larger divergences are by rounding than in float32: as epsilon squared."""
    coarse = max(EPSILON.get(_dtype(each), 0.0) for each in replica.moments)
    return max(1.0, coarse / EPSILON["float32"]) ** 2


def _dtype(moment: Moment) -> str:
    return moment.base.dtype.removeprefix("torch.")


def _attending(other: Replica, number: int, moment: Moment) -> Moment:
    attention = other.moments[number].base.attention
    if attention == moment.base.attention:
        return moment
    return replace(moment, base=replace(moment.base, attention=attention))


def _acting(replica: Replica) -> frozenset[tuple[int, str]]:
    return frozenset(
        (number, name)
        for number, moment in enumerate(replica.moments)
        for name, each in moment.adapter.items()
        if each.scale
    )


def training_floor(engine: Engine, a: Replica, course: Course, steps: int, key: Key) -> Floor:
    """Relative distance between what a course comes to and what it does under nulls."""
    own = learn(engine, a.base, course, steps)
    draws = [
        distance(own, learn(engine, a.base, course, steps, nudge=key.fold("ulp", draw)))
        for draw in range(DRAWS)
    ]
    return Floor.of(draws, RELATIVE)
