"""Why texts of a loop ended, told from all texts of the loop: nobody sees the rule itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_STOP = 8
"""Tokens of a stop text."""

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Rule:
    """What ends the texts of one loop besides end tokens, as far as they show it."""

    eos: frozenset[int]
    limit: int | None = None  # tokens
    stop: tuple[int, ...] = ()  # the tokens with which texts ended that nothing else ended
    told: bool = True  # whether limit and stop explain every text

    @classmethod
    def of(cls, rows: Rows, eos: frozenset[int]) -> Rule:
        """A length that all others keep below, or an ending that only ended texts have.

        Of texts of different lengths only one of which is the longest, that one may have reached
        the limit, or ended as the others did.
        """
        cut = [row for row in rows if row and row[-1] not in eos]
        if not cut:
            return cls(eos)
        lengths = Counter(map(len, cut))
        longest = max(lengths)
        if len(lengths) == 1:
            return cls(eos, longest)
        shorter = [row for row in cut if len(row) < longest]
        stop = _shared_end(cut, rows)
        if stop:
            return cls(eos, None, stop)
        stop = _shared_end(shorter, rows)
        sure = lengths[longest] > 1 or bool(stop)
        return cls(eos, longest if sure else None, stop, told=sure)

    def ended(self, row: Sequence[int]) -> str:
        """Why a text ended: eos, length, stop, or unknown."""
        if row and row[-1] in self.eos:
            return "eos"
        if self.limit is not None and len(row) >= self.limit:
            return "length"
        return "stop" if self.told else "unknown"


def _shared_end(stopped: Rows, rows: Rows) -> tuple[int, ...]:
    """The shortest end of all of `stopped` that stands nowhere else in any of `rows`."""
    if len(stopped) < 2:
        return ()
    ids = {id(row) for row in stopped}
    for length in range(1, LONGEST_STOP + 1):
        ends = {tuple(row[-length:]) for row in stopped}
        if len(ends) > 1 or min(map(len, stopped)) < length:
            return ()
        (end,) = ends
        if all(_count(row, end) == (id(row) in ids) for row in rows):
            return end
    return ()


def _count(row: Sequence[int], part: tuple[int, ...]) -> int:
    starts = range(len(row) - len(part) + 1)
    return sum(tuple(row[start : start + len(part)]) == part for start in starts)
