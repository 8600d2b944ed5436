"""One step's arithmetic as plain functions of the state: moving, and ending rounds.

The loop and the replay of a run from its evidence both use these.

Shapes: L lanes, P parameters of one adapter, K commits of a lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from weft.core.keys import Key
from weft.methods.boosting import Rounds, free_parameters, fresh, layers_of_round
from weft.methods.optimise import clip, rate, update
from weft.model.adapter import Layout
from weft.training.config import Lane, RunConfig
from weft.training.state import State


@dataclass(frozen=True, eq=False)
class Course:
    """All that decides how lanes move, besides what is estimated.

    `start_LP` is where they began; `noise_LP` the size of a population's noise, the unit of its
    directions.
    """

    config: RunConfig
    layout: Layout
    steps: int
    start_LP: torch.Tensor
    noise_LP: torch.Tensor | None = None

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The adapters that train."""
        return self.config.lanes

    def free(self, rounds: Sequence[Rounds]) -> torch.Tensor | None:
        """1 for each parameter [L, P] that may move in the lanes' rounds; None: all may."""
        boost, only_b = self.config.boost, self.config.adapter.factors == "b"
        count = boost.layers_per_round if boost is not None else None
        if count is None and not only_b:
            return None
        chosen = [
            None
            if count is None
            else layers_of_round(self.layout, count, Key.of(lane.seed), its.number)
            for lane, its in zip(self.lanes, rounds, strict=True)
        ]
        return torch.stack([free_parameters(self.layout, only_b, each) for each in chosen])

    def rates(self, state: State) -> tuple[float, ...]:
        """Each lane's learning rate at this step."""
        factor = rate(self.config.optimiser, state.step, self.steps)
        warm = self.config.boost.warmup_steps if self.config.boost is not None else 0
        return tuple(
            lane.lr * factor * _warmed(its, state.step, warm)
            for lane, its in zip(self.lanes, state.rounds, strict=True)
        )


@dataclass(frozen=True, eq=False)
class Moved:
    """The state after an update, and how large things were."""

    state: State
    lr_L: tuple[float, ...]
    norm_L: tuple[float, ...]  # of the direction, before clipping
    update_norm_L: tuple[float, ...]
    update_noise_L: tuple[float, ...] = ()  # the update in units of the noise: root mean square


def move(course: Course, state: State, direction_LP: torch.Tensor) -> Moved:
    """One update against `direction_LP`; what may not move stays where it is."""
    optimiser = course.config.optimiser
    direction_LP, norm_L = clip(direction_LP, optimiser.clip)
    lr_L = course.rates(state)
    lr_L1 = state.theta_LP.new_tensor(lr_L)[:, None]
    theta_LP, moments = update(
        state.theta_LP,
        direction_LP,
        lr_L1,
        state.moments,
        optimiser,
        unit_LP=course.noise_LP,
        start_LP=course.start_LP,
    )
    free_LP = course.free(state.rounds)
    if free_LP is not None:  # weight decay would shrink what is frozen
        theta_LP = torch.where(free_LP.to(theta_LP.device) > 0, theta_LP, state.theta_LP)
    update_LP = theta_LP - state.theta_LP
    update_noise_L = () if course.noise_LP is None else _relative(update_LP, course.noise_LP)
    after = replace(state, step=state.step + 1, theta_LP=theta_LP, moments=moments)
    return Moved(after, lr_L, norm_L, tuple(update_LP.norm(dim=1).tolist()), update_noise_L)


def _relative(update_LP: torch.Tensor, noise_LP: torch.Tensor) -> tuple[float, ...]:
    """Root mean square of update / noise, over the parameters that have noise."""
    noisy_LP = noise_LP > 0
    ratio_LP = torch.where(noisy_LP, update_LP / noise_LP, 0.0)
    count_L = noisy_LP.sum(dim=1).clamp(min=1)
    return tuple((ratio_LP.norm(dim=1) / count_L.sqrt()).tolist())


@dataclass(frozen=True)
class Ended:
    """How a lane's round ended: committed, or begun anew because it had learnt nothing."""

    member: str
    round: int
    committed: bool
    commits: int
    of_step: int  # the step whose adapter was committed: an earlier one after a plateau

    def event(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "kind": "commit" if self.committed else "restart",
            "member": self.member,
            "round": self.round,
            "commits": self.commits,
            "of_step": self.of_step,
        }


def end_rounds(
    course: Course, state: State, lanes: Sequence[int], *, at_best: bool
) -> tuple[State, list[Ended]]:
    """Commit the adapters of `lanes`, at their round's best point or as they are; begin anew.

    A round whose best point is its own start has learnt nothing: nothing is committed.
    """
    boost = course.config.boost
    assert boost is not None
    theta_LP, moments, rounds = state.theta_LP.clone(), state.moments, list(state.rounds)
    ended = []
    for index in lanes:
        lane, its = course.lanes[index], rounds[index]
        learnt = not at_best or its.best_step > its.started
        theta_P = its.best_P if at_best else state.theta_LP[index]
        stack_KP = its.stack_KP
        if learnt:
            stack_KP = its.committed(theta_P, course.layout, boost.shrinkage)
        new_P = fresh(course.layout, Key.of(lane.seed), its.number + 1).to(theta_LP.device)
        is_known = at_best and (boost.shrinkage == 1 or not learnt)
        loss = its.best_loss if is_known else float("inf")
        rounds[index] = its.next(state.step, stack_KP, new_P, loss)
        theta_LP[index] = new_P
        if boost.optimiser == "reset":
            moments = moments.without(index)
        of_step = its.best_step if at_best else state.step
        ended.append(Ended(lane.name, its.number, learnt, len(stack_KP), of_step))
    return replace(state, theta_LP=theta_LP, moments=moments, rounds=tuple(rounds)), ended


def _warmed(its: Rounds, step: int, warmup: int) -> float:
    """The factor of a new adapter's warm-up; the first round has the schedule's own."""
    since = step - its.started
    return 1.0 if its.number == 0 or since >= warmup else (since + 1) / warmup
