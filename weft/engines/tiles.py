"""Which rows decode together: members x prompts, cut so that their keys and values fit a budget.

A pure function of what is asked for. Nobody's memory, cores or number of workers comes into it, so
that whoever computes a tile computes the same products, and says the same. The members of a tile,
asked for alone, are cut as they were among the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weft.core.batch import even_spans


@dataclass(frozen=True)
class Tile:
    """Members start..stop-1 on some of the prompts, and the bytes of their keys and values."""

    start: int
    stop: int
    prompts: tuple[int, ...]
    bytes: int


def tiles(
    members: int,
    lengths: Sequence[int],
    max_tokens: int,
    token_bytes: int,
    budget: int,
    *,
    context: int | None = None,
    most_members: int | None = None,
) -> list[Tile]:
    """Every member on every prompt once, in tiles of at most `budget` bytes and of like sizes.

    `lengths` are the prompts', `token_bytes` the keys and values of one position; no text is longer
    than `context`. A tile is of whole members where one fits, since a member's rows share its
    adapter; else of one member and prompts of like lengths. One row is a tile in any case, even
    where it takes more than `budget`.
    """

    def row_bytes(prompts: Sequence[int]) -> int:
        """Of each of these prompts: as much as the longest of them takes."""
        longest = max(lengths[i] for i in prompts) + max_tokens
        return token_bytes * (longest if context is None else min(longest, context))

    def tile(start: int, stop: int, prompts: Sequence[int]) -> Tile:
        rows = (stop - start) * len(prompts)
        return Tile(start, stop, tuple(prompts), rows * row_bytes(prompts))

    if not members or not lengths:
        return []
    everything = range(len(lengths))
    rows = max(1, budget // row_bytes(everything))
    if rows >= len(lengths):
        at_once = min(rows // len(lengths), most_members or members)
        return [tile(start, stop, everything) for start, stop in even_spans(members, at_once)]
    by_length = sorted(everything, key=lengths.__getitem__)
    parts = [by_length[start:stop] for start, stop in even_spans(len(lengths), rows)]
    return [tile(n, n + 1, part) for n in range(members) for part in parts]
