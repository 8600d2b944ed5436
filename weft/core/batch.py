"""Tokenised examples, and the batches that a step or an evaluation scores.

Shapes: T tokens of one example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

IGNORE = -100
"""Label of a position that is not supervised (the value PyTorch and transformers use)."""


@dataclass(frozen=True, eq=False)
class Choice:
    """A prompt, the completions among which its answer is chosen, and which of them is right.

    No completion is without tokens, and no two have the same.
    """

    prompt_T: np.ndarray
    candidates: tuple[tuple[int, ...], ...]
    right: int

    @property
    def single(self) -> bool:
        """Whether every candidate is one token, so that one position decides between them."""
        return all(len(ids) == 1 for ids in self.candidates)

    def row(self, id: str, candidate: int) -> Example:
        """The prompt followed by a candidate, whose tokens alone are supervised."""
        ids = np.array(self.candidates[candidate], dtype=np.int64)
        labels_T = np.concatenate([np.full(len(self.prompt_T), IGNORE), ids])
        return Example(id, np.concatenate([self.prompt_T, ids]), labels_T)


@dataclass(frozen=True, eq=False)
class Goal:
    """A prompt, and the row by which what follows it is graded."""

    prompt_T: np.ndarray
    row: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Example:
    """One tokenised row.

    `labels_T[t]` is the token that position t should *be* (as in transformers: not shifted), or
    `IGNORE`. The first position has no predecessor and is never scored. `choice` is there for a
    row whose response is one of a few, `goal` for a row of data.
    """

    id: str
    ids_T: np.ndarray
    labels_T: np.ndarray
    choice: Choice | None = None
    goal: Goal | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens, prompt included."""
        return len(self.ids_T)

    @property
    def read(self) -> int:
        """Number of tokens that a forward must read: those before the last supervised one.

        Where none is supervised all are read, as for a prompt that something will follow.
        """
        at = np.flatnonzero(self.labels_T[1:] != IGNORE)
        return int(at[-1]) + 1 if len(at) else self.tokens

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


def spans(count: int, size: int | None) -> Iterator[tuple[int, int]]:
    """Consecutive ranges (start, stop) of at most `size` (None: all) that cover `count`."""
    step = size or max(count, 1)
    for start in range(0, count, step):
        yield start, min(start + step, count)


def even_spans(count: int, most: int) -> list[tuple[int, int]]:
    """As few ranges of at most `most` as cover `count`, equal to within one."""
    parts = -(-count // most)
    cuts = [count * i // max(parts, 1) for i in range(parts + 1)]
    return list(pairwise(cuts))
