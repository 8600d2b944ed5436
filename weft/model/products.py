"""Products with the frozen weights of the base.

PyTorch hands fp32 products on a CPU to BLAS. oneDNN, which it uses in bf16, is faster there too,
and in bf16 it adds the bias by itself, for which PyTorch copies it into each row beforehand. The
operator is the one that `torch.compile` calls. Which of the two a row takes follows from device,
dtype and the number of rows, never from a timing.

Shapes: T positions, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

ROWS = (8, 16, 32, 64)
"""In fp32 oneDNN multiplies multiples of 8 rows, or of the largest of these numbers that is at most
an eighth of them. For each number of rows and each shape of a weight it keeps about 1 MB of code,
and batches come in all lengths; in bf16 it is a small part of that."""


def product(
    x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None
) -> torch.Tensor:
    """x @ W^T + bias [..., O], differentiable with respect to x; W may lie inputs first."""
    few = x_TI.numel() < ROWS[0] * x_TI.shape[-1]
    if few or arithmetic(weight_OI) != "oneDNN" or x_TI.dtype != weight_OI.dtype:
        return linear(x_TI, weight_OI, bias_O)
    if x_TI.requires_grad and torch.is_grad_enabled():
        y_TO: torch.Tensor = _Product.apply(x_TI, weight_OI, bias_O)
        return y_TO
    return _onednn(x_TI, weight_OI, bias_O)


def across(z_Tr: torch.Tensor, y_TO: torch.Tensor) -> torch.Tensor:
    """z^T @ y [r, O], a sum over the rows: whole units of them by oneDNN, and the others."""
    main = len(z_Tr) - len(z_Tr) % ROWS[-1]
    if not main or arithmetic(y_TO) != "oneDNN":
        return torch.mm(z_Tr.T, y_TO)
    sum_rO = _onednn(z_Tr[:main].T.contiguous(), y_TO[:main].T, None)
    return sum_rO.addmm_(z_Tr[main:].T, y_TO[main:])


def arithmetic(weight: torch.Tensor) -> str:
    """The library that multiplies by this weight, as far as it is known."""
    fast = _HAS_OPERATOR and weight.device.type == "cpu" and weight.dtype in _DTYPES
    return "oneDNN" if fast else "PyTorch's choice"


@contextmanager
def fast_products(model: torch.nn.Module) -> Iterator[None]:
    """Within this context the linear layers of a frozen model multiply by `product`."""
    layers = [module for module in model.modules() if _is_slow(module)]
    for layer in layers:
        vars(layer)["forward"] = partial(_FORWARD[type(layer)], layer)  # shadows the method
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _is_slow(module: Any) -> bool:
    if type(module) not in _FORWARD or "forward" in vars(module):  # somebody's own, or ours
        return False
    return arithmetic(module.weight) == "oneDNN" and not any(
        parameter.requires_grad for parameter in module.parameters(recurse=False)
    )


_FORWARD: dict[type[torch.nn.Module], Callable[[Any, torch.Tensor], torch.Tensor]] = {
    torch.nn.Linear: lambda layer, x: product(x, layer.weight, layer.bias),
    Conv1D: lambda layer, x: product(x, layer.weight.T, layer.bias),
}


class _Product(torch.autograd.Function):
    """What autograd does not know of the operator: the gradient of its input."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None
    ) -> torch.Tensor:
        """x @ W^T + bias."""
        ctx.save_for_backward(weight_OI)
        return _onednn(x_TI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """dy @ W."""
        (weight_OI,) = ctx.saved_tensors
        return product(grads[0], weight_OI.T), None, None


_HAS_OPERATOR = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)
_DTYPES = {torch.float32}
if _HAS_OPERATOR and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _DTYPES.add(torch.bfloat16)


def _onednn(
    x_TI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None
) -> torch.Tensor:
    """In whole units of rows in fp32; the last of them is filled up with zeros."""
    flat_TI = x_TI if x_TI.dim() == 2 else x_TI.reshape(-1, x_TI.shape[-1])
    rows = len(flat_TI)
    units = ROWS if x_TI.dtype == torch.float32 else (1,)
    unit = max((each for each in units if 8 * each <= rows), default=units[0])
    if missing := -rows % unit:
        flat_TI = torch.nn.functional.pad(flat_TI, (0, 0, 0, missing))
    y_TO: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        flat_TI, _whole(weight_OI), bias_O, "none", [], ""
    )
    if flat_TI is x_TI:  # a step of decoding has many products, each of them short
        return y_TO
    # not `view`: autograd copies around what is changed in place where that is a view
    shape = [*x_TI.shape[:-1], len(weight_OI)]
    shaped: torch.Tensor = torch.ops.aten._unsafe_view(y_TO[:rows], shape)
    return shaped


def _whole(weight_OI: torch.Tensor) -> torch.Tensor:
    """The weight without gaps between its lines.

    With gaps, as a layer has them whose weight is a view of joined ones, oneDNN would be a thousand
    times slower. Either order of the dimensions gives the same bits.
    """
    if weight_OI.stride(1) == 1:
        return weight_OI.contiguous()
    return weight_OI.T.contiguous().T
