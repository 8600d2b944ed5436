"""Adapters laid over a base for the length of one forward; nothing stays behind.

Hooks on the adapted modules add each member's delta to the base's own output. They live inside
`woven(...)` only: outside it the base is an ordinary transformers model.

Shapes: N members, M positions of one block, I and O the inputs and outputs of a site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.model.noise import keep_mask
from weft.model.rows import PackedRows, PaddedRows

Rows = PackedRows | PaddedRows


@dataclass(frozen=True, eq=False)
class Dropout:
    """Dropout on the input of A: the rate, and one key a block, so that runs do not share noise."""

    rate: float
    keys: tuple[Key, ...]

    def __call__(self, x_NMI: torch.Tensor, block: int, site: str) -> torch.Tensor:
        """x with its dropped entries zeroed and the others scaled up."""
        keep_MI = keep_mask(x_NMI.shape[1:], self.rate, self.keys[block].fold("dropout", site))
        return x_NMI * keep_MI.to(x_NMI.device) / (1 - self.rate)


@dataclass(frozen=True, eq=False)
class Weft:
    """What is laid over the base: the bank's members, and the frozen stack below all of them."""

    bank: Bank
    stack: Adapter | None = None
    dropout: Dropout | None = None

    def members(self, start: int, stop: int) -> Weft:
        """The same with members start..stop-1 only."""
        return Weft(self.bank.part(start, stop), self.stack, self.dropout)


NOTHING = Weft(Bank(("base",), {}))
"""The base alone, as a bank of one member."""


@contextmanager
def woven(model: torch.nn.Module, weft: Weft, rows: Rows) -> Iterator[None]:
    """Within this context, a forward of `model` on `rows` is that of every member on its block.

    Raises `InputError` if the forward did not pass through every adapted site, or passed through
    one with other positions than the rows' own (a module that sees only some of the tokens).
    """
    stack = weft.stack.sites if weft.stack else {}
    names = dict.fromkeys([*weft.bank.sites, *stack])
    reached: set[str] = set()
    with ExitStack() as cleanup:
        for name in names:
            delta = _delta_at(name, weft, rows, reached)
            module = model.get_submodule(name)
            if _is_layer(module):
                handle = module.register_forward_hook(_adding(delta))
                cleanup.callback(handle.remove)
            else:
                cleanup.enter_context(_parameter_site(module, delta))
        yield
    if missed := sorted(set(names) - reached):
        raise InputError(f"the forward never reached the adapted module {missed[0]!r}")


Delta = Callable[[torch.Tensor], torch.Tensor]


def _delta_at(name: str, weft: Weft, rows: Rows, reached: set[str]) -> Delta:
    weave = weft.bank.sites.get(name)
    weaves = None if weave is None else [weave.members(b.start, b.stop) for b in rows.blocks]
    frozen = _frozen(weft.stack, name)

    def delta(x: torch.Tensor) -> torch.Tensor:
        """The change of the site's output for its input x [..., I], as [positions, O] in fp32."""
        reached.add(name)
        parts = [part.float() for part in _split(rows, x, name)]
        total = []
        for block, x_NMI in enumerate(parts):
            y_NMO = None
            if weaves is not None:
                kept = weft.dropout(x_NMI, block, name) if weft.dropout else x_NMI
                y_NMO = weaves[block].delta(kept)
            if frozen is not None:
                below = torch.matmul(torch.matmul(x_NMI, frozen[0]), frozen[1])
                y_NMO = below if y_NMO is None else y_NMO + below
            assert y_NMO is not None
            total.append(y_NMO)
        return rows.join(total)

    return delta


def _frozen(stack: Adapter | None, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(A^T [I, K], scale * B^T [K, O]) of the stack at a site."""
    if stack is None or name not in stack.layout.by_name:
        return None
    a_KI, b_OK = stack.sites[name]
    return a_KI.T, b_OK.T * stack.layout.by_name[name].scale


def _split(rows: Rows, x: torch.Tensor, name: str) -> list[torch.Tensor]:
    seen, whole = x.shape[:-1].numel(), rows_positions(rows)
    if seen != whole:
        raise InputError(
            f"{name} sees {seen} of {whole} positions, so it cannot carry an adapter here",
            hint="modules inside routed experts are not supported as targets",
        )
    return rows.split(x)


def rows_positions(rows: Rows) -> int:
    """All positions of one forward, padding included."""
    return (rows.ids_1T if isinstance(rows, PackedRows) else rows.ids_RL).numel()


def _is_layer(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _adding(delta: Delta) -> Callable[[torch.nn.Module, tuple[Any, ...], torch.Tensor], Any]:
    def hook(_: torch.nn.Module, args: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor:
        return (y + delta(args[0]).view(y.shape)).to(y.dtype)

    return hook


@contextmanager
def _parameter_site(module: torch.nn.Module, delta: Delta) -> Iterator[None]:
    """Add `delta` where the module's own forward multiplies by its bare `weight`."""
    forward = module.forward

    def adapted(*args: Any, **kwargs: Any) -> Any:
        with _AddToLinear(module.weight, delta):
            return forward(*args, **kwargs)

    module.forward = adapted  # type: ignore[method-assign]  # shadows the method, see finally
    try:
        yield
    finally:
        del module.forward


class _AddToLinear(TorchFunctionMode):
    """Adds `delta(x)` to every `linear(x, weight)` of one given weight."""

    def __init__(self, weight: torch.Tensor, delta: Delta) -> None:
        super().__init__()
        self.weight = weight
        self.delta = delta

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        y = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and args[1] is self.weight:
            return (y + self.delta(args[0]).view(y.shape)).to(y.dtype)
        return y

