"""Asking a base, and what is laid over it, without a trace: hooks that live for one question.

Shapes: T positions, I and O inputs and outputs of a site, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from weft.core.batch import Batch, Example
from weft.core.keys import Key
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.model.base import Base
from weft.model.forward import make_rows
from weft.model.noise import rademacher
from weft.model.rows import Block
from weft.model.weaving import Weft, woven
from weft.runs.sketch import PROBES, probes

LOUD = 2.0**12
"""The size of the updates that are asked for: large, so that no rounding of the base hides them."""

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def seen_scales(base: Base, adapter: Adapter) -> dict[str, tuple[float, float]]:
    """What the hooks of a forward really multiply B @ A by at each layer, and what that leaves.

    Each adapted layer is called on the probes with and without its hook, B being fixed numbers
    meanwhile; `c` minimises |with - without - c * B @ A @ x|, and the second number is what is
    left of it, relatively, beyond one rounding of what the layer gives. Routers, whose weight is a
    bare parameter, are not in it, nor is a layer whose factors are too large or too small to be
    multiplied.
    """
    slots = [slot for slot in adapter.layout.slots if slot.site.kind != "router"]
    loud = _loud(adapter).to(base.device)
    adapter = Adapter(adapter.layout, loud)
    rows = make_rows(base, [Block(0, 1, _batch())])
    count = rows.ids.numel()
    layers = {slot.site.name: base.model.get_submodule(slot.site.name) for slot in slots}
    inputs = {
        slot.site.name: _input(slot.site.inputs, count).to(base.device, base.dtype)
        for slot in slots
    }
    without = {name: layers[name](x_1TI).float() for name, x_1TI in inputs.items()}
    only = Bank.of({"probe": adapter}).only([0])
    bank = Bank(only.members, {name: only.sites[name] for name in layers})
    with woven(base.model, Weft(bank), rows):
        seen = {name: layers[name](x_1TI).float() for name, x_1TI in inputs.items()}
    found = {}
    for name, (a_rI, b_Or) in adapter.sites.items():
        if name not in layers:
            continue
        update_1TO = (inputs[name].float() @ a_rI.T) @ b_Or.T
        power = float((update_1TO.double() ** 2).sum())
        if not power or not math.isfinite(power):
            continue
        change_1TO = seen[name] - without[name]
        scale = float((change_1TO * update_1TO).sum()) / power
        rounding = torch.finfo(base.dtype).eps * float(seen[name].norm())
        left = max(float((change_1TO - scale * update_1TO).norm()) - rounding, 0.0)
        found[name] = scale, left / max(float(change_1TO.norm()), 1e-30)
    return found


def _loud(adapter: Adapter) -> torch.Tensor:
    """The adapter's A, or fixed numbers where it is zero, and fixed large numbers for B."""
    flat = adapter.flat.detach().cpu().clone()
    for name, (a_rI, b_Or) in adapter.layout.factors(flat).items():
        if not a_rI.any():
            a_rI.copy_(_numbers(a_rI.shape))
        size = float(a_rI.double().norm()) * abs(adapter.layout.by_name[name].scale)
        b_Or.copy_(_numbers(b_Or.shape) * (LOUD / max(size, 1e-6)))
    return flat


def _numbers(shape: torch.Size) -> torch.Tensor:
    return torch.from_numpy(probes(shape.numel())[:, 0].copy()).reshape(shape)


def _input(inputs: int, count: int) -> torch.Tensor:
    """The probes, again and again, as so many positions: [1, T, I]."""
    rows = np.resize(probes(inputs).T, (count, inputs))
    return torch.from_numpy(rows)[None]


def _batch() -> Batch:
    ids = np.arange(1, PROBES + 2)
    return Batch((Example("probe", ids, ids),))


@contextmanager
def embeddings_moved(base: Base, key: Key) -> Iterator[None]:
    """Every number that embeds a token is one unit in the last place off, up or down by `key`."""

    def move(module: torch.nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        signs = rademacher(out.numel(), key).reshape(out.shape).to(out.device)
        integers = _INTEGERS[out.element_size()]
        moved = (out.contiguous().view(integers) + signs.to(integers)).view(out.dtype)
        return torch.where(out == 0, out, moved)

    handle = base.model.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()
