"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """`1 pass`, `2 passes`; `many` defaults to an s more."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
