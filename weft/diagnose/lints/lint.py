"""What a look at one side alone says: a plain value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]
"""As it should be; rarely meant; cannot be meant."""


@dataclass(frozen=True)
class Lint:
    """One thing that was looked at."""

    name: str
    state: State
    words: str  # a sentence with the value
    value: float | str | None = None
    place: str = ""
    where: str | None = None  # the line of the user's code
    fix: str | None = None


Lints = Iterator[Lint]


def some(things: Sequence[object], most: int = 3) -> str:
    """The first few, and how many there are besides."""
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(map(str, things[:most])) + more
