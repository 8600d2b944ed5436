"""Which field of which data record stands where in a text: exact matches of long enough values."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from weft.runs.evidence import Slot

SHORTEST = 4
"""Characters: shorter values stand in every text by chance."""

NAMED = 3
"""Records that a slot names where its value is in several and nothing tells them apart."""

Owner = tuple[str, str]
"""Record and field."""


class Slots:
    """The values of all data records that were read, and where they stand in texts."""

    def __init__(self) -> None:
        """Know none."""
        self._owners: dict[str, dict[Owner, None]] = {}  # by value, in the order they were read
        self._sorted: list[str] = []
        self._starts: set[str] = set()

    def __len__(self) -> int:
        return len(self._owners)

    def add(self, records: Iterable[tuple[str, Any]]) -> None:
        """Take in records by name."""
        for name, record in records:
            for field, value in fields_of(record):
                if len(value) >= SHORTEST:
                    self._owners.setdefault(value, {})[name, field] = None
        self._sorted = []

    def find(self, text: str) -> tuple[Slot, ...]:
        """The slots of a text, in order and without overlap; of two that overlap the longer one.

        A value that several records have belongs to the one that explains most of the text.
        """
        taken: list[tuple[int, int]] = []
        for start, stop in sorted(self._matches(text), key=lambda span: (span[0] - span[1], span)):
            if all(stop <= other[0] or start >= other[1] for other in taken):
                taken.append((start, stop))
        taken.sort()
        explained = self._explained(text, taken)
        return tuple(self._slot(text, start, stop, explained) for start, stop in taken)

    def _matches(self, text: str) -> Iterator[tuple[int, int]]:
        """Every place where a value stands between two edges of words."""
        if not self._sorted:
            self._sorted = sorted(self._owners)
            self._starts = {value[:SHORTEST] for value in self._sorted}
        for start in range(len(text) - SHORTEST + 1):
            if text[start : start + SHORTEST] in self._starts and _edge(text, start):
                for length in self._lengths(text[start:]):
                    yield start, start + length

    def _lengths(self, text: str) -> Iterator[int]:
        """Lengths of the values that `text` begins with, where a word ends; the longest first."""
        below = text
        while place := bisect_right(self._sorted, below):
            nearest = self._sorted[place - 1]
            if below.startswith(nearest):
                if _edge(text, len(nearest)):
                    yield len(nearest)
                below = nearest[:-1]
            else:  # what begins `text` and sorts before `nearest` begins both
                below = _shared(nearest, below)

    def _explained(self, text: str, spans: list[tuple[int, int]]) -> dict[str, int]:
        """Characters of the text that each record explains."""
        explained: dict[str, int] = {}
        for value in {text[start:stop] for start, stop in spans}:
            for record in {record for record, _ in self._owners[value]}:
                explained[record] = explained.get(record, 0) + len(value)
        return explained

    def _slot(self, text: str, start: int, stop: int, explained: Mapping[str, int]) -> Slot:
        owners = self._owners[text[start:stop]]
        most = max(explained[record] for record, _ in owners)
        best = [owner for owner in owners if explained[owner[0]] == most]
        records = list(dict.fromkeys(record for record, _ in best))
        shown = " or ".join(records[:NAMED])
        if len(records) > NAMED:
            shown += f" or {len(records) - NAMED} more"
        return Slot(start=start, stop=stop, record=shown, field=best[0][1])


def fields_of(record: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and stripped values of the texts in a record, however deep they lie."""
    if isinstance(record, str):
        yield field or "text", record.strip()
    elif isinstance(record, Mapping):
        for key, value in record.items():
            yield from fields_of(value, f"{field}.{key}" if field else str(key))
    elif isinstance(record, list | tuple):
        for index, value in enumerate(record, start=1):
            yield from fields_of(value, f"{field}.{index}" if field else str(index))


def _shared(one: str, other: str) -> str:
    """What both begin with."""
    pairs = zip(one, other, strict=False)
    return one[: next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))]


def _edge(text: str, place: int) -> bool:
    """Whether a word may start or end here: not between two letters or digits of ASCII."""
    if place == 0 or place >= len(text):
        return True
    return not (_inner(text[place - 1]) and _inner(text[place]))


def _inner(character: str) -> bool:
    return character.isascii() and character.isalnum()
