"""What lanes stand on: the base, and below each lane what it has committed so far.

Shapes: L lanes, P parameters of one adapter, K commits of a lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from weft.methods.boosting import stacked
from weft.model.adapter import Layout
from weft.model.bank import Bank
from weft.model.base import Base
from weft.model.merging import merged_base


@dataclass(frozen=True, eq=False)
class Ground:
    """A base, and the stacks on it, for lanes start..stop-1."""

    base: Base
    stacks: Bank | None  # one for each of these lanes; None: nothing is committed
    start: int
    stop: int

    def bank(self, names: Sequence[str], layout: Layout, theta_LP: torch.Tensor) -> Bank:
        """The lanes of this ground as members that stand on their own."""
        here = slice(self.start, self.stop)
        bank = Bank.from_flat(names[here], layout, theta_LP[here])
        return bank if self.stacks is None else bank.over(self.stacks)


def grounds(
    base: Base, layout: Layout, stacks: Sequence[torch.Tensor], *, into_weights: bool = False
) -> list[Ground]:
    """The grounds of lanes with these stacks [K, P].

    All lanes share the base and differ in their stacks; or, where commits go into the weights,
    each has a base of its own that shares whatever is not adapted.
    """
    adapters = [stacked(layout, stack_KP) if len(stack_KP) else None for stack_KP in stacks]
    if into_weights:
        return [
            Ground(base if each is None else merged_base(base, each), None, lane, lane + 1)
            for lane, each in enumerate(adapters)
        ]
    if not any(adapters):
        return [Ground(base, None, 0, len(stacks))]
    bank = Bank.of({str(lane): each for lane, each in enumerate(adapters)})
    return [Ground(base, bank.to(base.device), 0, len(stacks))]
