"""What a forward makes of each row it scores: nats over the row's supervised tokens.

Nobody looks outside `nats_seen`.

Shapes: E examples of a block, C cells of a forward, block by block, examples fastest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from weft.model.rows import Block

Nats = dict[tuple[int, ...], float]
"""By the token ids of a row, all of them."""

_SEEN: ContextVar[Nats | None] = ContextVar("nats that are seen", default=None)


@contextmanager
def nats_seen() -> Iterator[Nats]:
    """Within it, each forward of single members adds its rows. The innermost gets them."""
    seen: Nats = {}
    token = _SEEN.set(seen)
    try:
        yield seen
    finally:
        _SEEN.reset(token)


def note_nats(blocks: Sequence[Block], loss_C: torch.Tensor) -> None:
    """A forward has these sums of its rows."""
    if (seen := _SEEN.get()) is None or any(block.members != 1 for block in blocks):
        return
    examples = [example for block in blocks for example in block.batch.examples]
    for example, nats in zip(examples, loss_C.detach().cpu().tolist(), strict=True):
        seen.setdefault(tuple(example.ids_T.tolist()), nats)
