"""Asking live modules questions without a trace: state and generators are as they were."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from weft.diagnose.record.anatomy import Lora, is_transposed
from weft.runs.sketch import PROBES, probes


@contextmanager
def undisturbed(module: nn.Module, *, evaluating: bool = True) -> Iterator[None]:
    """Run a module in evaluation mode, without gradients, and leave no trace of it.

    Generators of PyTorch, NumPy and Python, training flags and hooks are put back. The hooks of
    the script are not called.
    """
    modes = [(part, part.training) for part in module.modules()]
    hooks = [
        (part, name, getattr(part, name))
        for part in module.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks")
        if getattr(part, name)
    ]
    python, numpy = sys.modules["random"], sys.modules["numpy.random"]
    states = python.getstate(), numpy.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), plain_arithmetic():
        try:
            for part, _ in modes:
                part.training = part.training and not evaluating
            for part, name, held in hooks:
                setattr(part, name, type(held)())
            yield
        finally:
            for part, mode in modes:
                part.training = mode
            for part, name, held in hooks:
                setattr(part, name, held)
            python.setstate(states[0])
            numpy.set_state(states[1])


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Compute in the types of the tensors, also where the script has PyTorch cast them."""
    with torch.autocast("cpu", enabled=False):
        if torch.cuda.is_initialized():
            with torch.autocast("cuda", enabled=False):
                yield
        else:
            yield


@contextmanager
def swapped(tensors: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> Iterator[None]:
    """Tensors that hold other values for a while. Autograd does not notice."""
    kept = [tensor.data for tensor in tensors]
    try:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data = value
        yield
    finally:
        for tensor, value in zip(tensors, kept, strict=True):
            tensor.data = value


@plain_arithmetic()
def base_sketch(base: nn.Module) -> torch.Tensor | None:
    """What a linear layer makes of the probes, without bias, in float32: [out, K]."""
    weight = getattr(base, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        return None
    if not weight.is_floating_point():
        return None
    matrix = weight.detach().float()
    if is_transposed(base):
        matrix = matrix.T
    return matrix @ torch.from_numpy(probes(matrix.shape[1])).to(matrix.device)


def seen_scale(lora: Lora) -> tuple[float, float] | None:
    """What the module really multiplies its update by, and what that leaves unexplained.

    The module runs on the probes in float32 with a base of zeros; `c` minimises
    `|module(x) - c * B @ A @ x|`. Where the update is zero because B is, B is something else
    meanwhile. None: the module does not run like that.
    """
    if lora.merged and not lora.active:  # PEFT would take the merge back
        return None
    own = [*lora.module.parameters(), *lora.module.buffers()]
    tensors = list({id(t): t for t in [*own, *lora.parts] if t.is_floating_point()}.values())
    base = {id(t) for t in [*lora.base.parameters(recurse=False)]}
    factors = {id(t) for t in lora.parts}
    base -= factors
    inputs = probes(lora.shape[1]).T.copy()
    values = []
    for tensor in tensors:
        value = tensor.detach().float()
        if id(tensor) in base:
            value = torch.zeros_like(value)
        elif id(tensor) in factors and not value.any():
            value = _something(value)
        values.append(value)
    with undisturbed(lora.module), swapped(tensors, values):
        current = [each.float() for each in lora.factors()]
        x = torch.from_numpy(inputs).to(current[0].device)
        out = lora.module.forward(x)
        for hook in lora.hooks:
            changed = hook(lora.module, (x,), out)
            out = out if changed is None else changed
        seen = out[0] if isinstance(out, tuple) else out
        update = (x @ current[0].T) @ current[1].T
    if seen.shape != update.shape:
        return None
    power = float((update * update).sum())
    if not power:
        return None
    scale = float((seen * update).sum()) / power
    left = float((seen - scale * update).norm()) / max(float(seen.norm()), 1e-30)
    return scale, (left if float(seen.norm()) > 1e-12 * PROBES else 0.0)


def _something(value: torch.Tensor) -> torch.Tensor:
    """A matrix of the size of another that is not zero: rows of the fixed probes."""
    rows = probes(value.numel())[:, 0].reshape(tuple(value.shape))
    return torch.from_numpy(rows).to(value.device)
