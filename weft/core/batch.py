"""Tokenised examples, and the batches that a step or an evaluation scores.

Shapes: T tokens of one example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

IGNORE = -100
"""Label of a position that is not supervised (the value PyTorch and transformers use)."""


@dataclass(frozen=True, eq=False)
class Example:
    """One tokenised row.

    `labels_T[t]` is the token that position t should *be* (as in transformers: not shifted), or
    `IGNORE`. The first position has no predecessor and is never scored.
    """

    id: str
    ids_T: np.ndarray
    labels_T: np.ndarray

    @property
    def tokens(self) -> int:
        """Number of tokens, prompt included."""
        return len(self.ids_T)

    @property
    def supervised(self) -> int:
        """Number of positions that count in the loss."""
        return int((self.labels_T[1:] != IGNORE).sum())


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples that are scored together."""

    examples: tuple[Example, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """Example ids, in row order."""
        return tuple(e.id for e in self.examples)

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(e.tokens for e in self.examples)

    @property
    def supervised(self) -> int:
        """Supervised positions of all rows."""
        return sum(e.supervised for e in self.examples)

    def micro(self, rows: int) -> Iterator[Batch]:
        """Consecutive pieces of at most `rows` rows."""
        for start in range(0, len(self.examples), rows):
            yield Batch(self.examples[start : start + rows])


def batches_of(examples: Sequence[Example], rows: int) -> Iterator[Batch]:
    """All examples in the given order, `rows` at a time; the last batch may be smaller."""
    yield from Batch(tuple(examples)).micro(rows)
