"""An adapter is a layout and one contiguous fp32 vector; its sites are views of that vector.

Shapes: P parameters of one adapter, r rank, I inputs and O outputs of a site.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from weft.core.keys import Key

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Site:
    """A place in the base that an adapter can change: one weight matrix, seen as [O, I]."""

    name: str
    kind: str  # "linear", "conv1d" (weight stored [I, O]) or "router" (a bare parameter [O, I])
    inputs: int
    outputs: int
    layer: int | None


@dataclass(frozen=True)
class Slot:
    """A site with the rank and the one effective scale of the adapter there: dW = scale * B @ A."""

    site: Site
    rank: int
    scale: float

    @property
    def shape_a(self) -> tuple[int, int]:
        """A is [r, I]."""
        return (self.rank, self.site.inputs)

    @property
    def shape_b(self) -> tuple[int, int]:
        """B is [O, r]."""
        return (self.site.outputs, self.rank)


@dataclass(frozen=True)
class Layout:
    """Which sites an adapter covers, and where each factor lies in the flat vector."""

    slots: tuple[Slot, ...]

    @cached_property
    def sizes(self) -> list[int]:
        """Lengths of A, B, A, B, ... in the flat vector, in slot order."""
        return [math.prod(s) for slot in self.slots for s in (slot.shape_a, slot.shape_b)]

    @cached_property
    def size(self) -> int:
        """P, the number of parameters of one adapter."""
        return sum(self.sizes)

    @cached_property
    def by_name(self) -> Mapping[str, Slot]:
        """Slots by site name."""
        return {slot.site.name: slot for slot in self.slots}

    def factors(self, flat: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Views (A [..., r, I], B [..., O, r]) of `flat` [..., P], by site name.

        One `split`, so that autograd puts the gradient together with a single `cat`.
        """
        parts = iter(flat.split(self.sizes, dim=-1))
        lead = flat.shape[:-1]
        return {
            slot.site.name: (
                next(parts).unflatten(-1, slot.shape_a) if lead else next(parts).view(slot.shape_a),
                next(parts).unflatten(-1, slot.shape_b) if lead else next(parts).view(slot.shape_b),
            )
            for slot in self.slots
        }


@dataclass(frozen=True, eq=False)
class Adapter:
    """A low-rank change of the base: at each site dW = scale * B @ A."""

    layout: Layout
    flat: torch.Tensor  # [P] fp32

    @property
    def sites(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """(A [r, I], B [O, r]) by site name: views of `flat`."""
        return self.layout.factors(self.flat)


def initial_adapter(layout: Layout, key: Key) -> Adapter:
    """A fresh adapter: A uniform on +-1/sqrt(I), B zero, so the function is the base's.

    The law is that of PEFT (kaiming_uniform with a=sqrt(5)) and of mlx-lm. Each site draws from
    its own key, so a site's A does not depend on which other sites are adapted.
    """
    import torch  # here: whoever asks for sites and shapes only loads none of it

    from weft.model.noise import uniform

    flat = torch.zeros(layout.size)
    for name, (a_rI, _) in layout.factors(flat).items():
        bound = 1 / math.sqrt(a_rI.shape[1])
        a_rI.copy_(uniform(a_rI.shape, -bound, bound, key.fold("init", name)))
    return Adapter(layout, flat)
