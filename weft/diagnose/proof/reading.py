"""What replicas predict: exchanges of prompts, padding, weights, adapters and context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from weft.core.keys import Key
from weft.diagnose.proof.build import Built
from weft.diagnose.proof.control import Control, control, departs
from weft.diagnose.proof.counterfactuals import Guess, explain
from weft.diagnose.proof.fed import Seen
from weft.diagnose.proof.floors import Floor, in_float32, reading_floor
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.local import Made, made
from weft.diagnose.proof.measures import Measure, mean_kl, predicted
from weft.diagnose.proof.replica import Replica
from weft.diagnose.proof.solve import Solved, Trial, solve

FACTORS = (
    "scale", "mask", "positions", "context", "mode", "dtype", "prompt", "ids", "attach",
    "adapter", "init", "tied", "base",
)  # fmt: skip
"""Of those that a finding may name, what can change a prediction."""

HIDDEN_FLOOR = {"float32": 1e-4, "float64": 1e-4, "bfloat16": 6e-2, "float16": 1e-2}
"""Relative error of a hidden state that rounding may have."""


@dataclass(frozen=True, eq=False)
class Read:
    """What exchanging showed of predictions."""

    a: Replica
    b: Replica  # as mended, where its recording did not explain it
    measure: Measure
    floor: Floor
    controls: tuple[Control, Control]
    solved: Solved
    guessed: dict[str, Guess]  # by side
    departs: dict[str, int]  # by side, the first block that its replica does not reproduce
    local: Made | None = None  # where B first errs by itself, where no exchange says all
    in_float32: float | None = None  # the gap, with 16-bit bases in float32

    @property
    def holds(self) -> bool:
        """Whether both replicas are what they stand for."""
        return all(each.holds for each in self.controls)


def read(
    engine: Engine,
    built: Built,
    trials: Sequence[Trial],
    key: Key,
    told: Callable[[str], None],
) -> Read:
    """Compare, mend, exchange."""
    a, b = built.a, built.b
    told("measuring noise")
    lossy = built.merge is not None and built.merge.label == "merge-precision"
    floor = reading_floor(engine, a, b, Measure.of(a, b), key, nulls=built.nulls, merging=not lossy)
    guessed: dict[str, Guess] = {}
    at: dict[str, int] = {}
    a, first = _mended(engine, a, b, built.seen_a, floor, guessed, at, told)
    b, second = _mended(engine, b, a, built.seen_b, floor, guessed, at, told)
    measure = Measure.of(a, b)
    own = predicted(engine, a, measure)

    def distance(replica: Replica) -> float:
        return mean_kl(own, predicted(engine, replica, measure))

    suspected = [each for each in trials if each.factor in FACTORS]
    mine = [Trial(guess.factor) for guess in guessed.values()]
    solved = solve(a, b, _once([*suspected, *mine]), distance, floor.value, told)
    if not solved.closed and solved.gap > floor.value:
        named = {each.factor for each in [*suspected, *mine]}
        more = [
            Trial(factor)
            for factor in FACTORS
            if factor not in named | {"prompt", "attach", "init"}
        ]
        wider = solve(a, b, _once([*suspected, *mine, *more]), distance, floor.value, told)
        solved = wider if wider.left < solved.left else solved
    found = Read(a, b, measure, floor, (first, second), solved, guessed, at)
    return replace(found, in_float32=_escalated(engine, found), local=_located(engine, found, key))


def _located(engine: Engine, found: Read, key: Key) -> Made | None:
    """Where what no suspect explains is made, if both replicas stand."""
    solved = found.solved
    known = solved.closed and all(each.trial.cause is not None for each in solved.accepted)
    if solved.gap <= found.floor.value or known or not found.holds:
        return None
    rest = found.b if solved.closed else solved.mended or found.b
    return made(engine, found.a, rest, key.fold("local"))


def _once(trials: Sequence[Trial]) -> list[Trial]:
    """Without exchanges that are another one, whoever named it."""
    found: dict[tuple[object, ...], Trial] = {}
    for each in trials:
        found.setdefault((each.factor, each.places), each)
    return list(found.values())


def _mended(
    engine: Engine,
    replica: Replica,
    other: Replica,
    seen: Sequence[Seen],
    floor: Floor,
    guessed: dict[str, Guess],
    at: dict[str, int],
    told: Callable[[str], None],
) -> tuple[Replica, Control]:
    """A replica that reproduces its recording, if there is a way."""
    found = control(engine, replica, seen, floor.value)
    if found.holds:
        return replica, found
    limit = HIDDEN_FLOOR.get(replica.base.dtype.removeprefix("torch."), 1e-4)
    layer = departs(engine, replica, seen, limit)
    if layer is not None:
        at[replica.name] = layer

    def apart(mended: Replica) -> float:
        return control(engine, mended, seen, floor.value).value

    guess = explain(replica, other, apart, 3 * floor.value, told)
    if guess is None:
        return replica, found
    guessed[replica.name] = guess
    return guess.mended, control(engine, guess.mended, seen, floor.value)


def _escalated(engine: Engine, found: Read) -> float | None:
    """The gap in float32, where a base is in 16 bits and there is a gap."""
    types = {
        moment.base.dtype.removeprefix("torch.")
        for each in (found.a, found.b)
        for moment in each.moments
    }
    if not types & {"bfloat16", "float16"} or found.solved.gap <= found.floor.value:
        return None
    a, b = in_float32(found.a), in_float32(found.b)
    pair: list[list[torch.Tensor]] = [predicted(engine, each, found.measure) for each in (a, b)]
    return mean_kl(*pair)
