"""Rows as they lie in a file, and what can be wrong with one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class RowProblem(ValueError):
    """The reason why a row cannot be used; whoever knows its file and line makes it a `BadRow`."""


@dataclass(frozen=True)
class Row:
    """One row of a file."""

    file: str
    line: int  # counted from 1; the row number where a file has no lines
    value: dict[str, Any]

    def bad(self, reason: object) -> BadRow:
        """This row as one that cannot be used."""
        return BadRow(self.file, self.line, str(reason))


@dataclass(frozen=True, order=True)
class BadRow:
    """A row that cannot be used, and why."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass
class Reading:
    """All that was found in a file, or the part of it that a split uses."""

    origin: str
    """The split that the file belongs to: it names the examples."""
    rows: list[Row] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    blank: int = 0
