"""Nats of the rows that forwards score are seen by whoever looks, of single members only."""

from __future__ import annotations

import numpy as np
import torch

from weft.core.batch import IGNORE, Batch, Example
from weft.model.nats import nats_seen, note_nats
from weft.model.rows import Block

ROWS = Batch(
    tuple(Example(str(n), np.array([n, 5, 6]), np.array([IGNORE, 5, 6])) for n in range(3))
)
LOSSES = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)


def test_rows_are_known_by_their_ids_and_the_innermost_sees_them() -> None:
    with nats_seen() as outer, nats_seen() as inner:
        note_nats([Block(0, 1, ROWS)], LOSSES)
    assert inner == {(0, 5, 6): 1.0, (1, 5, 6): 2.0, (2, 5, 6): 3.0} and not outer


def test_several_members_of_a_row_and_forwards_that_nobody_watches_leave_nothing() -> None:
    note_nats([Block(0, 1, ROWS)], LOSSES)
    with nats_seen() as seen:
        note_nats([Block(0, 2, ROWS)], torch.cat([LOSSES, LOSSES]))
    assert not seen
