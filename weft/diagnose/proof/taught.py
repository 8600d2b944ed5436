"""What replicas learn: exchanges of starts, batches, losses, rates and rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from weft.core.keys import Key
from weft.diagnose.proof.floors import Floor, training_floor
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.replica import Course, Normaliser, Replica
from weft.diagnose.proof.solve import Solved, Trial, solve
from weft.diagnose.proof.training import Learned, apart, distance, factored, learn, normalisers
from weft.diagnose.words import counted

FACTORS = (
    "scale", "init", "attach", "adapter", "labels", "normaliser", "order", "ids", "prompt", "mask",
    "positions", "optimiser", "schedule", "trainable", "base", "dtype", "seed",
)  # fmt: skip
"""Of those that a finding may name, what can change what is learned."""

AS_ANOTHER = {"prompt", "ids", "attach", "seed"}
"""Exchanges that are those of other factors, where nobody suspects them."""

STEPS = 3
"""Steps that are taken again, if the first difference is not later."""

MOST = 24

NULL_STEPS = 1
"""Steps under null transforms: noise is no smaller later."""

LOSS = {"float32": 1e-4, "float64": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
"""Relative error of a recorded loss that rounding may have."""


ADAPTERS = 0.02
"""Relative error of a recorded adapter that rounding and the optimiser may make of it."""


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
    turns = [{(turn.what, turn.after) for turn in each.turns} for each in (a.course, b.course)]
    parted = min((after for _, after in turns[0] ^ turns[1]), default=0)
    wanted = min(MOST, max(STEPS, late + 1, parted + 1))
    steps = min(wanted, len(a.course.lessons), len(b.course.lessons))
    told("taking A's and B's steps again")
    again = _Again(engine, steps)
    (a, fits_a), (b, fits_b) = (_ruled(again, each) for each in (a, b))
    common = [each for each in fits_a if each in fits_b]
    if common:  # no batch tells them apart
        a, b = (_with_rule(each, common[0]) for each in (a, b))
    a, fine_a, words_a = _remembering(again, a)
    b, fine_b, words_b = _remembering(again, b)
    assert a.course is not None and b.course is not None
    own = again(a)
    told("measuring noise")
    floor = training_floor(engine, a, a.course, min(steps, NULL_STEPS), key)

    def from_a(replica: Replica) -> float:
        return distance(own, again(replica))

    suspected = [each for each in trials if each.factor in FACTORS]
    solved = solve(a, b, suspected, from_a, floor.value, told)
    if not solved.closed and solved.gap > floor.value:
        named = {each.factor for each in suspected}
        more = [Trial(each) for each in FACTORS if each not in named | AS_ANOTHER]
        wider = solve(a, b, [*suspected, *more], from_a, floor.value, told)
        solved = wider if wider.left < solved.left else solved
    return Taught(a, b, steps, floor, solved, (fine_a, fine_b), (words_a, words_b))


class _Again:
    """Courses that are taken again, each once."""

    def __init__(self, engine: Engine, steps: int) -> None:
        self.engine, self.steps = engine, steps
        self._known: list[tuple[Replica, Learned]] = []

    def __call__(self, replica: Replica) -> Learned:
        assert replica.course is not None
        for known, learned in self._known:
            if known.course is replica.course and known.base is replica.base:
                return learned
        learned = learn(self.engine, replica.base, replica.course, self.steps)
        self._known.append((replica, learned))
        return learned


def _ruled(again: _Again, replica: Replica) -> tuple[Replica, tuple[Normaliser, ...]]:
    """The replica with a normaliser that its losses tell, and all that they allow."""
    fitting: tuple[Normaliser, ...] = ()
    for _ in range(2):  # a second time where the first guess of a rule was wrong
        assert replica.course is not None
        fitting = normalisers(replica.course, again(replica), _limit(replica))
        if not fitting or replica.course.normaliser in fitting:
            break
        replica = _with_rule(replica, fitting[0])
    assert replica.course is not None
    times = None if fitting else factored(replica.course, again(replica), _limit(replica))
    if times is not None:
        course = replace(replica.course, normaliser=times[0], factor=times[1])
        replica = replica.with_(course=course)
    return replica, fitting


def _with_rule(replica: Replica, rule: Normaliser) -> Replica:
    if replica.course is None or replica.course.normaliser == rule:
        return replica
    return replica.with_(course=replace(replica.course, normaliser=rule))


def _limit(replica: Replica) -> float:
    return LOSS.get(replica.base.dtype.removeprefix("torch."), 1e-3)


def _remembering(again: _Again, replica: Replica) -> tuple[Replica, bool, str]:
    """The replica, its optimiser as new after a merge or not: as its recording has it."""
    fine, words = _checked(again, replica)
    course = replica.course
    if fine or course is None or not course.turns:
        return replica, fine, words
    other = replica.with_(course=replace(course, keeps=not course.keeps))
    fine_too, words_too = _checked(again, other)
    return (other, True, words_too) if fine_too else (replica, fine, words)


def _checked(again: _Again, replica: Replica) -> tuple[bool, str]:
    """Whether a replica gives its recorded losses and adapters, and in words."""
    assert replica.course is not None
    made = again(replica)
    worst, name, steps = _worst(replica.course, made), replica.name, again.steps
    turned = {turn.after for turn in replica.course.turns}
    off = [
        apart(its, made.reached[step])
        for step, its in replica.course.reached.items()
        if step in made.reached and step not in turned
    ]
    if worst is None and not off:
        return True, f"{name}'s recording holds neither losses nor adapters to compare with"
    known = [f"losses within {worst:.1g}"] if worst is not None else []
    known += [f"adapters within {max(off):.1g}"] if off else []
    said = " and ".join(known)
    if (worst or 0.0) <= _limit(replica) and max(off, default=0.0) <= ADAPTERS:
        return True, f"{name}'s replica gives what was recorded of {counted(steps, 'step')}: {said}"
    return False, (
        f"{name} trains otherwise than its recording explains: its replica gives {said} "
        f"of what was recorded of {counted(steps, 'step')}"
    )


def _worst(course: Course, learned: Learned) -> float | None:
    errors = []
    for lesson, made in zip(course.lessons, learned.losses, strict=False):
        said = [micro.loss for micro in lesson.micros]
        own = list(made)
        if all(each is None for each in said) and lesson.loss is not None:
            own, said = [sum(made)], [lesson.loss]
        errors += [abs(x - y) / max(abs(y), 1e-6) for x, y in zip(own, said, strict=True) if y]
    return max(errors) if errors else None
