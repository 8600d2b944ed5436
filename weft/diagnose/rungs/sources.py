"""Rows whose ids differ, and the texts that they came from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from weft.diagnose.compare.align import Row
from weft.diagnose.rungs.spans import Ids, Span, frame, spans
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.runs.evidence import Encoded, Slot


@dataclass(frozen=True, eq=False)
class Source:
    """The text that a row's ids came from."""

    text: str
    parts: tuple[Encoded, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Parts of the text that are fields of records, by characters of the whole."""
        found, at = [], 0
        for part in self.parts:
            found += [
                slot.model_copy(update={"start": slot.start + at, "stop": slot.stop + at})
                for slot in part.slots
            ]
            at += len(part.text)
        return tuple(found)

    @property
    def cut(self) -> bool:
        """Whether ids were cut off."""
        return any((part.full_length or 0) > len(part.ids) for part in self.parts)


@dataclass(frozen=True, eq=False)
class Differing:
    """Two matched rows whose ids differ."""

    number: int  # of the prompt, from 1
    a: Row
    b: Row
    text_a: Source | None
    text_b: Source | None
    frame_a: tuple[Ids, Ids, Ids]  # special ids at the start, the rest, special ids at the end
    frame_b: tuple[Ids, Ids, Ids]

    @cached_property
    def same_text(self) -> bool:
        """Whether both are known to come from one text."""
        known = self.text_a is not None and self.text_b is not None
        return known and self.text_a.text == self.text_b.text  # type: ignore[union-attr]

    @cached_property
    def spans(self) -> list[Span]:
        """Where they part: of texts that differ, in characters, else in ids between frames."""
        if self.text_a is not None and self.text_b is not None and not self.same_text:
            return spans(self.text_a.text, self.text_b.text)
        return spans(self.frame_a[1], self.frame_b[1])


def differing(pair: Pair, pairs: Sequence[tuple[Row, Row]]) -> list[Differing]:
    """Matched rows with other ids, and the texts that they came from."""
    special = special_ids(pair.a) | special_ids(pair.b)
    return [
        Differing(
            number,
            a,
            b,
            source(pair.a, a.ids),
            source(pair.b, b.ids),
            frame(a.ids, special),
            frame(b.ids, special),
        )
        for number, (a, b) in enumerate(pairs, start=1)
        if a.ids != b.ids
    ]


@lru_cache(maxsize=4)
def _by_first(side: Evidence) -> Mapping[int, list[Encoded]]:
    found = defaultdict(list)
    seen = set()
    for each in side.encoded:
        if each.ids and (each.ids, each.text) not in seen:
            seen.add((each.ids, each.text))
            found[each.ids[0]].append(each)
    for known in found.values():
        known.sort(key=lambda each: -len(each.ids))
    return found


def source(side: Evidence, ids: Ids) -> Source | None:
    """The encoded texts that make up `ids`, with special tokens between them; None: unknown."""
    known, special = _by_first(side), special_ids(side)
    parts: list[Encoded] = []
    at = 0
    while at < len(ids):
        fits = (each for each in known.get(ids[at], ()) if ids[at : at + len(each.ids)] == each.ids)
        part = next(fits, None)
        if part is not None:
            parts.append(part)
            at += len(part.ids)
        elif ids[at] in special:
            at += 1
        else:
            return None
    return Source("".join(part.text for part in parts), tuple(parts)) if parts else None


def special_ids(side: Evidence) -> frozenset[int]:
    """Of all its tokenizers."""
    return frozenset(each for seen in side.tokenizers for each in seen.special.values())
