"""Which rows a training step sees: a pure function of the key and the step.

Nothing is drawn in sequence, so resuming at a step, skipping one or evaluating in between cannot
change what any other step sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from weft.core.batch import Batch, Example
from weft.core.keys import Key

ORDERS = 64
"""Orders that are remembered, of as many adapters that train at once: one of 10^6 rows takes 20 ms
to draw, at every step."""


@lru_cache(ORDERS)
def order(key: Key, epoch: int, n: int) -> np.ndarray:
    """The order of `n` rows in an epoch: a permutation of 0 .. n-1, read-only."""
    found = key.fold("order", epoch).numpy().permutation(n)
    found.flags.writeable = False
    return found


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Steps that see each of `n` rows once; the last batch may be smaller."""
    return -(-n // batch_size)


def batch_at(examples: Sequence[Example], step: int, batch_size: int, key: Key) -> Batch:
    """The batch of a step, counted from 0. Every epoch sees each example once, in a new order."""
    epoch, position = divmod(step, steps_per_epoch(len(examples), batch_size))
    start = position * batch_size
    chosen = order(key, epoch, len(examples))[start : start + batch_size]
    return Batch(tuple(examples[i] for i in chosen))


def cycle_at(examples: Sequence[Example], step: int, size: int | None = None) -> Batch:
    """The next `size` rows of a step, counted from 0, in the order of the file, round and round.

    Without a size, or with one of at least as many rows as there are, every step sees all of them.
    """
    n = len(examples)
    if size is None or size >= n:
        return Batch(tuple(examples))
    return Batch(tuple(examples[(step * size + i) % n] for i in range(size)))
