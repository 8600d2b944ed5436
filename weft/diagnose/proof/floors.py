"""What noise alone does to the distances between replicas, measured afresh: null transforms.

Reference, section 6: of the transforms that must not matter, repeat and one unit in the last place,
and those others in which the sides differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from weft.core.keys import Key
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


@dataclass(frozen=True)
class Floor:
    """The 99th percentile of null draws."""

    value: float
    draws: tuple[float, ...]

    @classmethod
    def of(cls, draws: Sequence[float], least: float) -> Floor:
        """At least what arithmetic resolves."""
        return cls(max(least, float(np.quantile(draws, QUANTILE))), tuple(draws))


def reading_floor(
    engine: Engine, a: Replica, b: Replica, measure: Measure, key: Key, *, merging: bool = True
) -> Floor:
    """Mean KL in nats between a replica and itself under nulls.

    `merging`: whether it makes no difference that an update is merged, as long as it is not lost.
    """
    own = predicted(engine, a, measure)
    draws = [
        mean_kl(own, predicted(engine, a, measure, nudge=key.fold("ulp", draw)))
        for draw in range(DRAWS)
    ]
    draws.append(mean_kl(own, predicted(engine, a, measure, alone=True)))
    other = a.at_each(partial(_attending, b))
    if other is not a:
        draws.append(mean_kl(own, predicted(engine, other, measure)))
    if merging and _acting(a) != _acting(b):  # one of them may have its adapter in the weights
        draws.append(mean_kl(own, predicted(engine, engine.merged(a), measure)))
    return Floor.of(draws, NATS)


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
