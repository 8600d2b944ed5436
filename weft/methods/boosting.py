"""Boosting: rounds of adapters, each committed to a frozen stack on which the next one starts.

    forward = base + stack + the adapter of the current round

A commit leaves the function as it is (shrinkage apart): the finished adapter joins the stack, and
the fresh one has B = 0. Ranks add up, so the stack is exact on a base of any precision, can be
saved, and is one ordinary adapter of rank K when the run ends.

Shapes: P parameters of one adapter, K commits, r rank of a slot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from weft.core.keys import Key
from weft.methods.trigger import adapted_layers
from weft.model.adapter import Adapter, Layout, Slot, initial_adapter


@dataclass(frozen=True, eq=False)
class Rounds:
    """One lane's chain: what it has committed, and how the current round fares.

    `stack_KP` holds committed adapters, oldest first, with the shrinkage in B. `number` counts
    rounds begun, from 0; `started` is the step at which this one began. The best point of the
    round is what evaluations have seen, its start included; `stale` counts those since then.
    """

    stack_KP: torch.Tensor
    best_P: torch.Tensor
    number: int = 0
    started: int = 0
    best_loss: float = float("inf")
    best_step: int = 0
    stale: int = 0

    @classmethod
    def none_yet(cls, theta_P: torch.Tensor) -> Rounds:
        """Before the first step."""
        return cls(theta_P.new_zeros((0, len(theta_P))), theta_P)

    def judged(self, theta_P: torch.Tensor, step: int, loss: float, min_delta: float) -> Rounds:
        """With an evaluation of the round's adapter taken into account."""
        if loss < self.best_loss - min_delta:
            return replace(self, best_P=theta_P, best_loss=loss, best_step=step, stale=0)
        return replace(self, stale=self.stale + 1)

    def committed(self, theta_P: torch.Tensor, layout: Layout, shrinkage: float) -> torch.Tensor:
        """The stack [K + 1, P] with this adapter on top."""
        entry_P = theta_P.clone()
        for _, b_Or in layout.factors(entry_P).values():
            b_Or *= shrinkage
        return torch.cat([self.stack_KP, entry_P[None]])

    def next(self, step: int, stack_KP: torch.Tensor, fresh_P: torch.Tensor, loss: float) -> Rounds:
        """A new round, after `step` steps, on a stack whose loss is known (or infinite: not)."""
        return Rounds(stack_KP, fresh_P, self.number + 1, step, loss, step)


def round_key(key: Key, number: int) -> Key:
    """The key of a round's fresh adapter; the first round's is the run's own."""
    return key if number == 0 else key.fold("round", number)


def fresh(layout: Layout, key: Key, number: int) -> torch.Tensor:
    """The adapter [P] with which a round begins, on the CPU."""
    return initial_adapter(layout, round_key(key, number)).flat


def stacked(layout: Layout, stack_KP: torch.Tensor) -> Adapter:
    """A stack as one adapter: at each site rank K * r, the scale as it was."""
    count = len(stack_KP)
    slots = tuple(Slot(s.site, s.rank * count, s.scale) for s in layout.slots)
    parts = []
    for a_KrI, b_KOr in layout.factors(stack_KP).values():
        parts += [a_KrI.reshape(-1), b_KOr.movedim(0, 1).reshape(-1)]
    return Adapter(Layout(slots), torch.cat(parts))


def chain(layout: Layout, stack_KP: torch.Tensor, theta_P: torch.Tensor) -> Adapter:
    """Stack and current adapter as one; a current adapter that does nothing is left out."""
    idle = not any(b_Or.any() for _, b_Or in layout.factors(theta_P).values())
    if idle and len(stack_KP):
        return stacked(layout, stack_KP)
    return stacked(layout, torch.cat([stack_KP, theta_P[None]]))


def layers_of_round(layout: Layout, count: int, key: Key, number: int) -> tuple[int, ...]:
    """The layers that a round trains: `count` of the adapted ones, drawn anew for each round."""
    generator = round_key(key, number).fold("layers").numpy()
    return tuple(sorted(generator.permutation(adapted_layers(layout))[:count].tolist()))


@lru_cache(maxsize=64)
def free_parameters(layout: Layout, only_b: bool, layers: tuple[int, ...] | None) -> torch.Tensor:
    """1 for each parameter [P] that may move: A left out, or layers other than these, 0."""
    free_P = torch.ones(layout.size)
    for name, (a_rI, b_Or) in layout.factors(free_P).items():
        if only_b:
            a_rI.zero_()
        if layers is not None and layout.by_name[name].site.layer not in layers:
            a_rI.zero_()
            b_Or.zero_()
    return free_P
