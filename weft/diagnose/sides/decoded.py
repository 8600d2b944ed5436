"""Decoding, step by step: which text each step should have seen, and which it was given.

Step k chooses the k-th new token (from 1); its text is the prompt and the k - 1 tokens before it.
The first one is the prefill.

Shapes: B rows, T positions fed, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from weft.diagnose.sides.evidence import Evidence
from weft.runs.evidence import Generation, Pass


@dataclass(frozen=True, eq=False)
class Step:
    """What one row of a generation was given to choose one token."""

    side: Evidence
    generation: Generation
    row: int
    number: int  # from 1
    of: Pass
    probability: float | None = None  # of its token, by the model alone

    @property
    def text(self) -> tuple[int, ...]:
        """Ids that the choice should depend on."""
        said = self.generation.tokens[self.row][: self.number - 1]
        return self.generation.prompts[self.row] + said

    @property
    def token(self) -> int:
        """What was chosen."""
        return self.generation.tokens[self.row][self.number - 1]

    @property
    def reached(self) -> int:
        """Positions that are in the cache or were fed, padding included."""
        return self.of.past + self.of.length

    @cached_property
    def fed(self) -> tuple[int, ...] | None:
        """Ids that were fed, padding included."""
        ids_BT = self._array(self.of.ids)
        return None if ids_BT is None else tuple(int(i) for i in ids_BT[self.row])

    @cached_property
    def position(self) -> int | None:
        """Of the last token that was fed, as the model used it."""
        whole = None if self.of.positions is None else self.side.array(self.of.positions)
        if whole is None:
            return None
        rows = np.atleast_2d(whole)
        return int(rows[self.row if len(rows) > self.row else 0][self._last])

    @cached_property
    def attended(self) -> int | None:
        """How many positions the mask leaves open; None if no mask was given."""
        mask = self._array(self.of.mask)
        return None if mask is None or mask.ndim != 2 else int((mask[self.row] != 0).sum())

    @cached_property
    def logits(self) -> np.ndarray | None:
        """[V] float32, that this token was chosen from."""
        return None if (found := self._array(self.of.logits)) is None else found[self.row]

    @property
    def _last(self) -> int:
        """The column of the last real token: of a prefill padded on the right, not the last."""
        if self.fed is None or self.of.length == 1 or not self.text:
            return -1
        width = len(self.text)
        for stop in range(len(self.fed), width - 1, -1):
            if self.fed[stop - width : stop] == self.text:
                return stop - 1
        return -1

    def _array(self, name: str | None) -> np.ndarray | None:
        whole = None if name is None else self.side.array(name)
        return None if whole is None or len(whole) <= self.row else whole


def steps_of(side: Evidence, generation: Generation, row: int) -> tuple[Step, ...]:
    """The steps of one row; none where its passes were not seen, or are not one a token."""
    passes = _passes(side, generation)
    told = generation.tokens[row] if row < len(generation.tokens) else ()
    rows = len(generation.prompts)
    first = min((draw.step for draw in generation.draws), default=0)
    of = {draw.step - first + 1: draw.probability for draw in generation.draws if draw.row == row}
    return tuple(
        Step(side, generation, row, number, seen, of.get(number))
        for number, seen in enumerate(passes[: len(told)], start=1)
        if seen.rows == rows
    )


def _passes(side: Evidence, generation: Generation) -> Sequence[Pass]:
    """One pass a step: without those that only read a part of the prompt before the last one."""
    known = {each.index: each for each in side.passes}
    passes = [known[index] for index in generation.passes if index in known]
    longest = max(range(len(generation.tokens)), key=lambda r: len(generation.tokens[r]), default=0)
    said = generation.tokens[longest] if generation.tokens else ()
    for skipped in range(max(len(passes) - len(said), 0) + 1):
        if _fits(side, passes[skipped:], longest, said):
            return passes[skipped:]
    return passes


def _fits(side: Evidence, passes: Sequence[Pass], row: int, said: tuple[int, ...]) -> bool:
    """Whether every pass after the first was fed the token before its own."""
    for seen, token in zip(passes[1:], said, strict=False):
        if seen.ids is not None:
            ids_BT = side.array(seen.ids)
            if row < len(ids_BT) and token not in ids_BT[row]:
                return False
    return True


def lone_tokens(side: Evidence) -> Iterator[tuple[int, Pass, int]]:
    """Passes that saw one token and nothing before it: the token, the pass, the row."""
    for seen in side.passes:
        if seen.length == 1 and seen.past == 0 and seen.ids is not None:
            for row, ids_T in enumerate(side.array(seen.ids)):
                yield int(ids_T[0]), seen, row
