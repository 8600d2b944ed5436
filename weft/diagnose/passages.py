"""What both sides were asked and said, side by side, with where their texts part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest

from weft.diagnose.evidence import Evidence, Pair
from weft.diagnose.finding import Passage
from weft.runs.evidence import Generation

MOST = 8
"""Passages of one diagnosis."""

Said = tuple[tuple[int, ...], str, tuple[int, ...], str]
"""Ids and text of a prompt, and of what was said."""


def passages(pair: Pair) -> tuple[Passage, ...]:
    """Completions of the same prompts, else of prompts in the same place; unequal ones first."""
    made = [_passage(a, b) for a, b in _matched(list(_said(pair.a)), list(_said(pair.b)))]
    return tuple(sorted(made, key=lambda each: each.token is None)[:MOST])


def _matched(ours: list[Said], theirs: list[Said]) -> Iterator[tuple[Said, Said]]:
    """Pairs with the same prompt ids, in order; of the rest, those that are in the same place."""
    left = list(theirs)
    alone = []
    for said in ours:
        twin = next((other for other in left if other[0] == said[0]), None)
        if twin is None:
            alone.append(said)
        else:
            left.remove(twin)
            yield said, twin
    yield from zip(alone, left, strict=False)


def _passage(a: Said, b: Said) -> Passage:
    return Passage((a[1], b[1]), (a[3], b[3]), first_difference(a[2], b[2]))


def first_difference(a: Iterable[int], b: Iterable[int]) -> int | None:
    """The first place, counted from 1, at which two sequences are not the same; None: they are."""
    pairs = enumerate(zip_longest(a, b), start=1)
    return next((place for place, (ours, theirs) in pairs if ours != theirs), None)


def _said(side: Evidence) -> Iterator[Said]:
    texts = {each.ids: each.text for each in side.encoded}
    for generation in side.generations:
        for row, (prompt, tokens) in enumerate(
            zip(generation.prompts, generation.tokens, strict=False)
        ):
            yield prompt, texts.get(prompt) or _ids(prompt), tokens, _text(generation, row, tokens)


def _text(generation: Generation, row: int, tokens: tuple[int, ...]) -> str:
    return generation.texts[row] if row < len(generation.texts) else _ids(tokens)


def _ids(ids: Iterable[int]) -> str:
    return f"token ids {' '.join(map(str, ids))}"
