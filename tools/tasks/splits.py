"""Splitting rows into train, valid and test without overlap."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

Row = dict[str, object]
SPLITS = ("train", "valid", "test")


def normalise(text: str) -> str:
    """Lower case, letters and digits only: rows that agree in this count as the same."""
    return re.sub(r"[^a-z0-9<>]+", " ", text.lower()).strip()


def distinct(rows: Iterable[Row], key: Callable[[Row], str]) -> Iterator[Row]:
    """Rows whose normalised key was not seen before."""
    seen: set[str] = set()
    for row in rows:
        mark = normalise(key(row))
        if mark not in seen:
            seen.add(mark)
            yield row


def take(rows: Iterator[Row], sizes: dict[str, int]) -> dict[str, list[Row]]:
    """Fill test, then valid, then train from one stream of distinct rows."""
    return {split: [next(rows) for _ in range(sizes[split])] for split in reversed(SPLITS)}
