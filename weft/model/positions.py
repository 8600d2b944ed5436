"""At which positions a model really reads its tokens: seen where they are applied.

Rotary modules and tables of learned positions are called with the positions of the tokens; what
they are called with is what counts, whatever was meant. Nobody looks outside `positions_seen`.

Shapes: N members, R rows of L tokens, T tokens of a forward, n tokens of one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from weft.model.rows import PackedRows, PaddedRows


@dataclass(frozen=True, eq=False)
class Sighting:
    """Positions [1 or R, L] or [T] that one forward applied, and its rows where it had some."""

    at: torch.Tensor
    rows: PackedRows | PaddedRows | None = None

    def by_example(self) -> Iterator[list[torch.Tensor]]:
        """Of each block, each example's positions [N, n] in the order of its batch."""
        assert self.rows is not None
        at_TC = self.at.expand(self.rows.ids.shape).reshape(-1, 1)
        for block, at_NM1 in zip(self.rows.blocks, self.rows.views(at_TC), strict=True):
            found: dict[int, torch.Tensor] = {}
            start = 0
            spans = zip(self.rows.order(block), self.rows.spans(block), strict=True)
            for number, (example, width) in spans:
                found[number] = at_NM1[:, start : start + example.read, 0]
                start += width
            yield [found[number] for number in range(len(found))]


_SEEN: ContextVar[list[Sighting] | None] = ContextVar("positions that are seen", default=None)


@contextmanager
def positions_seen() -> Iterator[list[Sighting]]:
    """Within it, each forward adds what it applied, the newest last. The innermost list gets it."""
    seen: list[Sighting] = []
    token = _SEEN.set(seen)
    try:
        yield seen
    finally:
        _SEEN.reset(token)


def note(at_T: torch.Tensor) -> None:
    """A forward without rows has applied these positions."""
    if (seen := _SEEN.get()) is not None:
        seen.append(Sighting(at_T.detach().cpu()))


@contextmanager
def noting(model: torch.nn.Module, rows: PackedRows | PaddedRows) -> Iterator[None]:
    """Around a forward of `model` on `rows`: what its modules apply first, if anybody looks."""
    if (seen := _SEEN.get()) is None:
        yield
        return
    length, found = rows.ids.shape[1], list[torch.Tensor]()

    def look(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if not found and (at := positions_among(args, kwargs, length)) is not None:
            found.append(at.cpu())

    modules = [part for name, part in model.named_modules() if takes_positions(name, part)]
    hooks = [part.register_forward_pre_hook(look, with_kwargs=True) for part in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    seen.extend(Sighting(at, rows) for at in found)


def takes_positions(name: str, module: torch.nn.Module) -> bool:
    """Whether a module is called with positions of tokens: a rotary one, or a table of them."""
    own = name.rpartition(".")[2]
    if isinstance(module, torch.nn.Embedding):
        return "pos" in own.lower() or own == "wpe"
    return "rotary" in type(module).__name__.lower() and not module._modules


def positions_among(args: Any, kwargs: Any, length: int) -> torch.Tensor | None:
    """What a module was called with that can be positions [1 or R, length]."""
    for value in (kwargs.get("position_ids"), *args):
        if (
            isinstance(value, torch.Tensor)
            and value.dim() == 2
            and value.shape[1] == length
            and value.dtype != torch.bool
            and not value.is_floating_point()
        ):
            return value.detach()
    return None
