"""What both sides were asked and said, side by side, with where their tokens part."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

from weft.diagnose.compare.align import Said, completions
from weft.diagnose.finding import Passage
from weft.diagnose.sides.evidence import Pair

MOST = 8
"""Passages of one diagnosis."""


def passages(pair: Pair) -> tuple[Passage, ...]:
    """Completions that belong together; those that differ first."""
    made = [
        Passage(
            (_asked(a), _asked(b)),
            (_said(a), _said(b)),
            first_difference(a.tokens, b.tokens),
        )
        for a, b in completions(pair).pairs
    ]
    return tuple(sorted(made, key=lambda each: each.token is None)[:MOST])


def first_difference(a: Iterable[int], b: Iterable[int]) -> int | None:
    """The first place, counted from 1, at which two sequences are not the same; None: they are."""
    pairs = enumerate(zip_longest(a, b), start=1)
    return next((place for place, (ours, theirs) in pairs if ours != theirs), None)


def _asked(said: Said) -> str:
    """The prompt as it was encoded, else its ids."""
    texts = {each.ids: each.text for each in said.side.encoded}
    return texts.get(said.prompt) or texts.get(said.key) or _ids(said.prompt)


def _said(said: Said) -> str:
    return said.text if said.text is not None else _ids(said.tokens)


def _ids(ids: Iterable[int]) -> str:
    return f"token ids {' '.join(map(str, ids))}"
