"""An adapter merged into the weights that it changes.

    W' = W + scale * B @ A, summed in float64, rounded once to the wanted dtype

Shapes: O outputs and I inputs of a site, r rank.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch

from weft.core.errors import InputError
from weft.model.adapter import Adapter, Slot
from weft.model.base import Base

Weights = dict[str, torch.Tensor]
"""All weights of a model, as in its `state_dict`."""

Memory = tuple[int, torch.Size, tuple[int, ...]]
"""Where a weight lies: the same for weights that are one."""


def merged_base(base: Base, adapter: Adapter) -> Base:
    """A base of its own in which the adapter is part of the weights; the given one is not written.

    Only the weights that change are copied; all others are shared. Raises `InputError` where an
    adapted weight is tied to another place, and for one that becomes too large for its dtype.
    """
    refuse_tied(adapter, names_by_memory(base.model.state_dict()))
    shared = [*base.model.named_parameters(), *base.model.named_buffers()]
    memo = {}  # what copy.deepcopy takes for a tensor's copy: once for all places of a tied one
    for name, tensor in shared:
        site = name.removesuffix(".weight")
        data = tensor.detach()
        if site in adapter.layout.by_name:
            data = merged_weight(data, adapter, site, data.dtype).to(data.device)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(data, tensor.requires_grad) if is_parameter else data
    return replace(base, model=copy.deepcopy(base.model, memo))


def merged_weight(
    weight: torch.Tensor, adapter: Adapter, site: str, dtype: torch.dtype
) -> torch.Tensor:
    """The weight of a site with the adapter's update, on the CPU."""
    return rounded(weight.cpu().double() + update(adapter, site).cpu(), dtype, f"{site}.weight")


def rounded(weight: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """The weight in another dtype; raises `InputError` where that has no room for it."""
    fits = weight.to(dtype)
    if not fits.isfinite().all() and weight.isfinite().all():
        short = str(dtype).removeprefix("torch.")
        raise InputError(
            f"{name} has numbers of up to {weight.abs().max():.3g}, too large for {short}",
            hint="merge in bfloat16 or float32",
        )
    return fits


def update(adapter: Adapter, site: str) -> torch.Tensor:
    """dW = scale * B @ A in float64, in the orientation in which the base stores the weight."""
    a_rI, b_Or = adapter.sites[site]
    slot: Slot = adapter.layout.by_name[site]
    dw_OI = slot.scale * (b_Or.double() @ a_rI.double())
    return dw_OI.T if slot.site.kind == "conv1d" else dw_OI


def names_by_memory(weights: Weights) -> dict[Memory, list[str]]:
    """Names of the same weight, together: tied weights have several."""
    found: dict[Memory, list[str]] = {}
    for name, weight in weights.items():
        found.setdefault(_memory(weight), []).append(name)
    return found


def refuse_tied(adapter: Adapter, names: Mapping[Memory, list[str]]) -> None:
    """Raise `InputError` where an adapted weight is tied to another, which would change, too."""
    for tied in names.values():
        for site in (name.removesuffix(".weight") for name in tied):
            if len(tied) > 1 and site in adapter.layout.by_name:
                others = sorted(set(tied) - {f"{site}.weight"})
                raise InputError(
                    f"{site} cannot be merged: its weight is also {', '.join(others)}, "
                    "which the adapter does not change",
                    hint="keep the adapter beside the base, whose weights then stay as they are",
                )


def _memory(weight: torch.Tensor) -> Memory:
    return weight.data_ptr() or id(weight), weight.shape, weight.stride()
