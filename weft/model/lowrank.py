"""Adding low-rank updates to the output of a frozen layer, in place, saving only what it needs.

    y[n] += scale * (dropout(x[n]) @ A[n]^T) @ B[n]^T        for every member n of every block

Autograd alone would keep the dropped-out input, the delta and its scaled copy of every site. Here
the backward pass needs x (which the base's own graph shares between sites), the boolean mask, and
z = x @ A^T, which is r wide. Forward, a position's numbers do not depend on how many others there
are: z is [M, r]. Backward, r comes first, which is up to five times faster than r columns.

Shapes: N members and M positions of a block, r rank, I inputs, O outputs, T all positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from weft.model.products import across, product

Views = Callable[[torch.Tensor], list[torch.Tensor]]
"""Activations [T, C] as views [N, M, C], one for each block."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How the rows of one forward meet the members of a bank at one site."""

    views: Views
    spans: Sequence[tuple[int, int]]  # the members of each block: start, stop
    scale_N11: torch.Tensor
    keep: Sequence[torch.Tensor] | None = None  # [M, I] for each block: what dropout keeps
    keep_rate: float = 1.0

    def __post_init__(self) -> None:
        ordered = sorted(self.spans)
        shared = any(b[0] < a[1] for a, b in pairwise(ordered))
        assert not shared, f"blocks share members: {self.spans}"  # their gradients would collide

    def seen(self, number: int, x_NMI: torch.Tensor) -> torch.Tensor:
        """What A sees of a block's input, in fp32."""
        seen_NMI = x_NMI.float()
        return seen_NMI if self.keep is None else seen_NMI * numbers(self.keep[number])


class AddLowRank(torch.autograd.Function):
    """`AddLowRank.apply(y, x, A, B, plan)`: y with every member's update added, in fp32.

    A [N, r, I] and B [N, O, r] are fp32. A y in lower precision is rounded once, after the sum.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: torch.Tensor,
        x: torch.Tensor,
        a_NrI: torch.Tensor,
        b_NOr: torch.Tensor,
        plan: Plan,
    ) -> torch.Tensor:
        """Changes y, and returns its numbers as a new tensor: nobody may read y afterwards.

        Autograd is not told, for y is often a view, and of a view that is changed in place it
        copies the whole gradient several times.
        """
        y_TO, x_TI = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
        blocks = zip(plan.views(y_TO), plan.views(x_TI), plan.spans, strict=True)
        zs = []
        for number, (y_NMO, x_NMI, (start, stop)) in enumerate(blocks):
            # what dropout keeps is scaled up with z, which is narrower
            seen_NMI = plan.seen(number, x_NMI)
            z_NMr = torch.bmm(seen_NMI, a_NrI[start:stop].transpose(1, 2))
            z_NMr *= plan.scale_N11[start:stop] / plan.keep_rate
            b_NrO = b_NOr[start:stop].transpose(1, 2).contiguous()
            add_product(y_NMO, z_NMr, b_NrO)
            zs.append(z_NMr)
        ctx.save_for_backward(x, a_NrI, b_NOr, *zs)
        ctx.plan = plan
        return y.data

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The chain rule; nothing is formed for what needs no gradient."""
        x, a_NrI, b_NOr, *zs = ctx.saved_tensors
        plan, dy = ctx.plan, grads[0]
        _, x_needs, a_needs, b_needs, _ = ctx.needs_input_grad
        da_NrI = torch.zeros_like(a_NrI) if a_needs else None
        db_NOr = torch.zeros_like(b_NOr) if b_needs else None
        dx = torch.empty(x.shape, dtype=torch.float32, device=x.device) if x_needs else None
        x_TI = x.reshape(-1, x.shape[-1])
        dy_views = plan.views(dy.reshape(-1, dy.shape[-1]))
        dx_views = plan.views(dx.view(x_TI.shape)) if dx is not None else dy_views
        blocks = zip(dy_views, plan.views(x_TI), dx_views, zs, plan.spans, strict=True)
        for number, (dy_NMO, x_NMI, dx_NMI, z_NMr, (start, stop)) in enumerate(blocks):
            dy_NMO = dy_NMO.float()
            if db_NOr is not None:
                db_NOr[start:stop] = _over_positions(z_NMr, dy_NMO).transpose(1, 2)
            if da_NrI is None and dx is None:
                continue
            dz_NrM = torch.bmm(b_NOr[start:stop].transpose(1, 2), dy_NMO.transpose(1, 2))
            dz_NrM *= plan.scale_N11[start:stop] / plan.keep_rate
            if da_NrI is not None:
                seen_NMI = plan.seen(number, x_NMI)
                da_NrI[start:stop] = _over_positions(dz_NrM.transpose(1, 2), seen_NMI)
            if dx is not None:
                _outwards(dz_NrM.transpose(1, 2), a_NrI[start:stop], dx_NMI)
                if plan.keep is not None:
                    dx_NMI *= numbers(plan.keep[number])
        return dy, None if dx is None else dx.to(x.dtype), da_NrI, db_NOr, None


def _over_positions(z_NMr: torch.Tensor, y_NMO: torch.Tensor) -> torch.Tensor:
    """z^T @ y of each member [N, r, O]: of one by oneDNN, which is faster at so wide a product."""
    if len(z_NMr) == 1:
        return across(z_NMr[0], y_NMO[0])[None]
    return torch.bmm(z_NMr.transpose(1, 2), y_NMO)


def _outwards(z_NMr: torch.Tensor, a_NrI: torch.Tensor, into_NMI: torch.Tensor) -> None:
    """z @ A of each member, written where it goes; of one by oneDNN as well."""
    if len(z_NMr) == 1:
        into_NMI[0] = product(z_NMr[0].contiguous(), a_NrI[0].T)
    else:
        torch.bmm(z_NMr, a_NrI, out=into_NMI)


def add_product(y_NMO: torch.Tensor, z_NMr: torch.Tensor, b_NrO: torch.Tensor) -> None:
    """y += z @ B in place; a y in lower precision is rounded once, after the sum."""
    if y_NMO.dtype == torch.float32:
        y_NMO.baddbmm_(z_NMr, b_NrO)
    else:
        y_NMO.copy_(y_NMO.float().baddbmm_(z_NMr, b_NrO))


def numbers(keep_MI: torch.Tensor) -> torch.Tensor:
    """0 and 1 for a boolean mask, as bytes: PyTorch converts those in vectors."""
    return keep_MI.view(torch.uint8)
