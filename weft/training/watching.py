"""What is seen of the forwards of a run's first steps, while they are computed.

Shapes: n tokens that a row's forward reads, N members.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from weft.model.base import Base
from weft.model.nats import Nats, nats_seen
from weft.model.points import Points
from weft.model.positions import positions_seen

PASSES = 8
"""First steps whose rows are kept."""


@dataclass(frozen=True)
class Watched:
    """What was seen of the forwards of a step, once they are over."""

    base: str = ""
    """Digest of some numbers of the base before the first step."""
    applied: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)
    """By the token ids of a row, the positions [n] at which the model read them."""
    nats: Nats = field(default_factory=dict)
    """By the token ids of a row, nats over its supervised tokens; of one adapter at a time."""


@contextmanager
def watching(base: Base, step: int) -> Iterator[Watched]:
    """Around the forwards after `step` steps."""
    watched = Watched("" if step else print_of(base))
    if step >= PASSES:
        yield watched
        return
    with positions_seen() as seen, nats_seen() as nats:
        yield watched
    watched.nats.update(nats)
    for each in seen:
        if each.rows is not None:
            for block, found in zip(each.rows.blocks, each.by_example(), strict=True):
                for example, at_Nn in zip(block.batch.examples, found, strict=True):
                    ids = tuple(example.ids_T[: example.read].tolist())
                    watched.applied.setdefault(ids, at_Nn[0].numpy())


def print_of(base: Base) -> str:
    """A digest of a few numbers of every tensor of a base, which is frozen."""
    return Points.of(dict(base.model.named_parameters())).digest
