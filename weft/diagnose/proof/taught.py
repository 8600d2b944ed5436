"""What replicas learn: exchanges of starts, batches, losses, rates and rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from weft.core.keys import Key
from weft.diagnose.proof.floors import Floor, training_floor
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.replica import Course, Normaliser, Replica
from weft.diagnose.proof.solve import Solved, Trial, solve
from weft.diagnose.proof.training import Learned, distance, learn, normalisers

FACTORS = (
    "scale", "init", "attach", "adapter", "labels", "normaliser", "order", "ids", "prompt", "mask",
    "positions", "optimiser", "schedule", "trainable", "base", "dtype",
)  # fmt: skip
"""Of those that a finding may name, what can change what is learned."""

STEPS = 4
"""Steps that are taken again, if the first difference is not later."""

MOST = 24

LOSS = {"float32": 1e-4, "float64": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
"""Relative error of a recorded loss that rounding may have."""


@dataclass(frozen=True, eq=False)
class Taught:
    """What exchanging showed of training."""

    a: Replica
    b: Replica
    steps: int
    floor: Floor
    solved: Solved
    holds: tuple[bool, bool]
    words: tuple[str, ...]


def teach(
    engine: Engine,
    a: Replica,
    b: Replica,
    trials: Sequence[Trial],
    key: Key,
    told: Callable[[str], None],
) -> Taught | None:
    """Take recorded steps again, as they were and with exchanges; None where there are none."""
    if a.course is None or b.course is None:
        return None
    late = max((each.step or 0 for each in trials), default=0)
    turns = [turn.after for each in (a.course, b.course) for turn in each.turns]
    wanted = min(MOST, max([STEPS, late + 1, *(after + 1 for after in turns)]))
    steps = min(wanted, len(a.course.lessons), len(b.course.lessons))
    told("taking A's and B's steps again")
    (a, fits_a), (b, fits_b) = (_ruled(engine, each, steps) for each in (a, b))
    common = [each for each in fits_a if each in fits_b]
    if common:  # no batch tells them apart
        a, b = (_with_rule(each, common[0]) for each in (a, b))
    fine_a, words_a = _checked(engine, a, steps)
    fine_b, words_b = _checked(engine, b, steps)
    assert a.course is not None and b.course is not None
    own = learn(engine, a.base, a.course, steps)
    floor = training_floor(engine, a, a.course, min(steps, STEPS), key)

    def apart(replica: Replica) -> float:
        assert replica.course is not None
        return distance(own, learn(engine, replica.base, replica.course, steps))

    suspected = [each for each in trials if each.factor in FACTORS]
    solved = solve(a, b, suspected, apart, floor.value, told)
    if not solved.closed and solved.gap > floor.value:
        named = {each.factor for each in suspected}
        more = [Trial(each) for each in FACTORS if each not in named | {"prompt", "ids", "attach"}]
        wider = solve(a, b, [*suspected, *more], apart, floor.value, told)
        solved = wider if wider.left < solved.left else solved
    return Taught(a, b, steps, floor, solved, (fine_a, fine_b), (words_a, words_b))


def _ruled(engine: Engine, replica: Replica, steps: int) -> tuple[Replica, tuple[Normaliser, ...]]:
    """The replica with a normaliser that its losses tell, and all that they allow."""
    fitting: tuple[Normaliser, ...] = ()
    for _ in range(2):  # a second time where the first guess of a rule was wrong
        assert replica.course is not None
        learned = learn(engine, replica.base, replica.course, steps)
        fitting = normalisers(replica.course, learned, _limit(replica))
        if not fitting or replica.course.normaliser in fitting:
            break
        replica = _with_rule(replica, fitting[0])
    return replica, fitting


def _with_rule(replica: Replica, rule: Normaliser) -> Replica:
    assert replica.course is not None
    return replica.with_(course=replace(replica.course, normaliser=rule))


def _limit(replica: Replica) -> float:
    return LOSS.get(replica.base.dtype.removeprefix("torch."), 1e-3)


def _checked(engine: Engine, replica: Replica, steps: int) -> tuple[bool, str]:
    """Whether a replica gives its recorded losses, and in words."""
    assert replica.course is not None
    worst = _worst(replica.course, learn(engine, replica.base, replica.course, steps))
    name = replica.name
    if worst is None:
        return True, f"{name}'s recording holds no losses to compare with"
    if worst <= _limit(replica):
        said = f"{name}'s replica gives the recorded losses of {steps} steps"
        return True, f"{said}: largest relative error {worst:.1g}"
    said = f"{name} trains otherwise than its recording explains"
    return False, f"{said}: its replica's losses are off by up to {worst:.1%} within {steps} steps"


def _worst(course: Course, learned: Learned) -> float | None:
    errors = []
    for lesson, made in zip(course.lessons, learned.losses, strict=False):
        for micro, loss in zip(lesson.micros, made, strict=True):
            if micro.loss is not None:
                errors.append(abs(loss - micro.loss) / max(abs(micro.loss), 1e-6))
    return max(errors) if errors else None
