"""Adapters laid over a base for the length of one forward; nothing stays behind.

Hooks on the adapted modules add each member's update to the base's own output. They live inside
`woven(...)` only: outside it the base is an ordinary transformers model.

Shapes: M positions (of one member) of a block, I and O the inputs and outputs of a site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.model.bank import Bank
from weft.model.lowrank import AddLowRank, Plan
from weft.model.noise import dropout_rate, fill_keep_mask
from weft.model.positions import noting
from weft.model.products import fast_products
from weft.model.rows import PackedRows, PaddedRows

if TYPE_CHECKING:
    from weft.model.trunk import Trunk

Rows = PackedRows | PaddedRows


@dataclass(frozen=True, eq=False)
class Dropout:
    """Dropout on the input of A: the rate, and a key for each block.

    An example's noise is its own: it depends on the block's key and the example's id, not on who
    shares the forward, so that splitting a batch over several forwards changes nothing.
    """

    rate: float
    keys: tuple[Key, ...]

    def keep(self, rows: Rows, inputs: Mapping[str, int]) -> dict[str, list[torch.Tensor]]:
        """By site, what is kept of each block's input, [M, I]; `inputs` gives I by site."""
        blocks, parts = [], []
        for key, block in zip(self.keys, rows.blocks, strict=True):
            spans = rows.spans(block)
            shape = (sum(positions for _, positions in spans), sum(inputs.values()))
            mask = np.ones(shape, dtype=bool)
            start = 0
            for example, positions in spans:
                here = mask[start : start + example.read]
                parts.append((here, self.rate, key.fold("dropout", example.id)))
                start += positions
            blocks.append(mask)
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # NumPy draws without the GIL
            list(threads.map(lambda part: fill_keep_mask(*part), reversed(parts)))
        masks = [torch.from_numpy(mask).to(rows.ids.device) for mask in blocks]
        widths = list(inputs.values())
        by_site = zip(*(mask.split(widths, dim=1) for mask in masks), strict=True)
        return {site: list(keep) for site, keep in zip(inputs, by_site, strict=True)}


@dataclass(frozen=True, eq=False)
class Weft:
    """What is laid over the base: the bank's members, and what lies below them.

    `stacks` holds one adapter for each block, in the order of the blocks; all members of a block
    lie on its adapter. `trunk` has read the layers below all of them.
    """

    bank: Bank
    stacks: Bank | None = None
    dropout: Dropout | None = None
    trunk: Trunk | None = None

    def only(self, members: Sequence[int]) -> Weft:
        """The same blocks with these members, in this order."""
        return Weft(self.bank.only(members), self.stacks, self.dropout, self.trunk)


@contextmanager
def woven(model: torch.nn.Module, weft: Weft, rows: Rows) -> Iterator[None]:
    """Within this context, a forward of `model` on `rows` is that of every member on its block.

    Raises `InputError` if the forward did not pass through every adapted site, or passed through
    one with other positions than the rows' own (a module that sees only some of the tokens).
    """
    stacks = weft.stacks.sites if weft.stacks else {}
    assert weft.stacks is None or len(weft.stacks.members) == len(rows.blocks)
    names = dict.fromkeys([*weft.bank.sites, *stacks])
    reached: set[str] = set()
    inputs = {name: weave.a_NrI.shape[2] for name, weave in weft.bank.sites.items()}
    keep = weft.dropout.keep(rows, inputs) if weft.dropout and inputs else {}
    with ExitStack() as cleanup:
        for name in names:
            add = _adding_at(name, weft, rows, keep.get(name), reached)
            module = model.get_submodule(name)
            if _is_layer(module):
                handle = module.register_forward_hook(_hook(add))
                cleanup.callback(handle.remove)
            else:
                cleanup.enter_context(_parameter_site(module, add))
        cleanup.enter_context(noting(model, rows))
        cleanup.enter_context(fast_products(model))
        yield
    if missed := sorted(set(names) - reached):
        raise InputError(f"the forward never reached the adapted module {missed[0]!r}")


Adding = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(y, x) to y with the updates of a site added: y [..., O] is its output, x [..., I] its input."""


def _adding_at(
    name: str, weft: Weft, rows: Rows, keep: list[torch.Tensor] | None, reached: set[str]
) -> Adding:
    weave = weft.bank.sites.get(name)
    spans = [(block.start, block.stop) for block in rows.blocks]
    below = weft.stacks.sites.get(name) if weft.stacks else None
    keep_rate = 1 - dropout_rate(weft.dropout.rate) if weft.dropout else 1.0
    one = [(number, number + 1) for number in range(len(spans))]

    def whole(x_TC: torch.Tensor) -> list[torch.Tensor]:
        """Each block as the positions of one member: they all lie on the same stack."""
        return [part_PC[None] for part_PC in x_TC.split(rows.sizes)]

    def add(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        reached.add(name)
        _check_positions(rows, x, name)
        if weave is not None:
            plan = Plan(rows.views, spans, weave.scale_N11, keep, keep_rate)
            y = AddLowRank.apply(y, x, weave.a_NrI, weave.b_NOr, plan)
        if below is not None:
            y = AddLowRank.apply(y, x, below.a_NrI, below.b_NOr, Plan(whole, one, below.scale_N11))
        return y

    return add


def _check_positions(rows: Rows, x: torch.Tensor, name: str) -> None:
    seen, whole = x.shape[:-1].numel(), rows.ids.numel()
    if seen != whole:
        raise InputError(
            f"{name} sees {seen} of {whole} positions, so it cannot carry an adapter here",
            hint="modules inside routed experts are not supported as targets",
        )


def _is_layer(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _hook(add: Adding) -> Callable[[torch.nn.Module, tuple[Any, ...], torch.Tensor], Any]:
    return lambda module, args, y: add(y, args[0])


@contextmanager
def _parameter_site(module: torch.nn.Module, add: Adding) -> Iterator[None]:
    """Add the updates where the module's own forward multiplies by its bare `weight`."""
    forward = module.forward

    def adapted(*args: Any, **kwargs: Any) -> Any:
        with _AddToLinear(module.get_parameter("weight"), add):
            return forward(*args, **kwargs)

    module.forward = adapted  # shadows the method, see finally
    try:
        yield
    finally:
        del module.forward


class _AddToLinear(TorchFunctionMode):
    """Adds to every `linear(x, weight)` of one given weight."""

    def __init__(self, weight: torch.Tensor, add: Adding) -> None:
        super().__init__()
        self.weight = weight
        self.add = add

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        y = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and args[1] is self.weight:
            return self.add(y, args[0])
        return y
