"""Exchanges give a replica one factor of another and leave the rest; equal ones give it back."""

from __future__ import annotations

import numpy as np
import pytest

from weft.diagnose.proof.replica import (
    BaseValue,
    Context,
    Course,
    Lesson,
    Micro,
    Optimiser,
    Replica,
    Row,
    Sampler,
    Stop,
    Turn,
    Update,
)
from weft.diagnose.proof.swaps import SWAPS


def update(seed=0, scale=2.0, trainable=True):
    drawn = np.random.default_rng(seed)
    a, b = drawn.standard_normal((2, 4)), drawn.standard_normal((3, 2))
    return Update(a.astype(np.float32), b.astype(np.float32), scale, 0.0, trainable)


def micro(ids=((1, 2, 3), (4, 5, 6)), labels=None, mask=None, positions=None):
    ids = np.array(ids)
    labels = ids if labels is None else np.array(labels)
    return Micro(ids, labels, mask, positions)


def course(**given):
    given = {
        "start": {"q": update()},
        "lessons": (Lesson((micro(),), 0.1), Lesson((micro(((7, 8, 9),)),), 0.2)),
    } | given
    return Course(**given)


def side(name="A", **given):
    given = {
        "base": BaseValue("base"),
        "adapter": {"q": update(), "v": update(1)},
        "rows": (Row((1, 2), left=2, tokens=(3,)),),
        "sampler": Sampler(False, 0.7),
        "stop": Stop(4),
        "seed": 0,
        "course": course(),
    } | given
    return Replica(name, **given)


CHANGES = {
    "ids": {"rows": (Row((1, 9), left=2, tokens=(3,)),)},
    "mask": {"rows": (Row((1, 2), left=2, attended=True, tokens=(3,)),)},
    "positions": {"rows": (Row((1, 2), left=2, rule="index", tokens=(3,)),)},
    "base": {"base": BaseValue("other")},
    "dtype": {"base": BaseValue("base", "bfloat16")},
    "adapter": {"adapter": {"q": update(), "v": update(7)}},
    "attach": {"adapter": {"q": update()}},
    "scale": {"adapter": {"q": update(scale=5.0), "v": update(1)}},
    "context": {"context": Context(visible=(1,), origin="fresh")},
    "mode": {"dropping": True},
    "sampler": {"sampler": Sampler(False, 1.3)},
    "stop": {"stop": Stop(9)},
    "seed": {"seed": 1},
    "init": {"course": course(start={"q": update(3)})},
    "labels": {
        "course": course(
            lessons=(
                Lesson((micro(labels=((-100, 2, 3), (-100, 5, 6))),), 0.1),
                course().lessons[1],
            )
        )
    },
    "normaliser": {"course": course(normaliser="sum", factor=0.5)},
    "order": {"course": course(lessons=(Lesson((micro(((7, 8, 9),)),), 0.1), course().lessons[1]))},
    "optimiser": {"course": course(optimiser=Optimiser("sgd"))},
    "schedule": {"course": course(turns=(Turn("merge", 1),))},
    "trainable": {"course": course(trains_base=True)},
}


def rendered(value):
    """A replica's values for comparison, arrays as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: rendered(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rendered(each) for each in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: rendered(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def swap(factor, to, other, places=(), step=None):
    return SWAPS[factor](to, other, places, step)


@pytest.mark.parametrize("factor", CHANGES)
def test_an_exchange_of_what_differs_makes_the_other_side_in_both_directions(factor):
    a, b = side(), side("B", **CHANGES[factor])
    assert rendered(swap(factor, b, a)) == rendered(a) | {"name": "B"}
    assert rendered(swap(factor, a, b)) == rendered(b) | {"name": "A"}


@pytest.mark.parametrize("factor", SWAPS)
def test_an_exchange_of_what_is_equal_gives_the_replica_back(factor):
    a, b = side(), side("B")
    assert swap(factor, b, a) is b


LARGER = {
    "scale": {"adapter", "attach"},
    "adapter": {"attach"},
    "attach": {"adapter"},
    "init": {"adapter", "attach"},
    "ids": {"prompt"},
    "order": {"ids", "prompt", "seed"},
}
"""Exchanges that take a factor along with others: all of an adapter, all of a batch."""


@pytest.mark.parametrize("factor", CHANGES)
def test_an_exchange_of_another_factor_does_not_make_the_other_side(factor):
    a, b = side(), side("B", **CHANGES[factor])
    closing = {
        other for other in SWAPS if rendered(swap(other, b, a)) == rendered(a) | {"name": "B"}
    }
    assert closing == {factor} | LARGER.get(factor, set())
