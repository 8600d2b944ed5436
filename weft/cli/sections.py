"""Labelled sections that fit on one screen: what is long is folded, and what is untrusted is shown.

A section has a label on the left and entries on the right. An entry has one or several lines, and
is shown whole or not at all.
"""

from __future__ import annotations

import sys
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from weft.cli import screen

COLUMNS = 100
LINES = 40
"""What is folded fits in so many."""

LONGEST = 4
"""Most lines that one line of an entry may take where it is wrapped; the rest of it is cut off."""

REST = "lists are cut to fit one screen: --json has all of them"
GAP = 2
VISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of characters that would steer a terminal, or that it could not show."""

Piece = str | tuple[str, str]
"""A text, or a text and its style."""


@dataclass(frozen=True)
class Line:
    """One line of an entry; where it is wrapped, it goes on below its own beginning."""

    pieces: tuple[Piece, ...]
    indent: int = 0


@dataclass(frozen=True)
class Entry:
    """Lines that belong together."""

    lines: tuple[Line, ...]

    @staticmethod
    def of(*pieces: Piece) -> Entry:
        """One line."""
        return Entry((Line(pieces),))


@dataclass(frozen=True)
class Section:
    """A label and its entries; of many, at least `least` are shown."""

    label: str
    entries: tuple[Entry, ...]
    least: int = 2
    worth: int = 0  # what is worth more is folded later


def shown(text: str) -> str:
    """A text with whatever is no character to be seen written as an escape."""
    return "".join(
        ascii(char)[1:-1] if unicodedata.category(char) in VISIBLE else char for char in text
    )


def put(sections: Sequence[Section]) -> None:
    """Print sections."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    kept = [section for section in sections if section.entries]
    indent = max(len(section.label) for section in sections) + GAP
    grid = Table.grid(padding=0)
    grid.add_column(width=indent, no_wrap=True)
    grid.add_column(overflow="fold")
    counts = folded(kept, COLUMNS - indent)
    for section, count in zip(kept, counts, strict=True):
        label = section.label
        lines = [line for entry in section.entries[:count] for line in entry.lines]
        for number, line in enumerate(lines, start=1):
            text = Text.assemble(*_cut(line.pieces))
            if number == len(lines):
                text.append(_more(len(section.entries) - count), "dim")
            grid.add_row(Text(label, "bold"), Padding(text, (0, 0, 0, line.indent)))
            label = ""
    if any(count < len(section.entries) for section, count in zip(kept, counts, strict=True)):
        grid.add_row("", Text(REST, "dim"))
    screen.put(grid, columns=COLUMNS if sys.stdout.isatty() else None)


def _more(count: int) -> str:
    return f" (and {count:,} more)" if count else ""


def folded(sections: Sequence[Section], width: int, lines: int = LINES) -> list[int]:
    """How many entries of each section are shown, so that all fit in `lines` if they can.

    The longest of those that are worth least gives first.
    """
    counts = [len(section.entries) for section in sections]

    def height(index: int) -> int:
        entries = sections[index].entries
        more = len(_more(len(entries) - counts[index]))
        heights = [_height(entry, width) for entry in entries[: counts[index] - 1]]
        return sum(heights) + sum(
            _height(entry, width - more) for entry in entries[counts[index] - 1 : counts[index]]
        )

    while sum(map(height, range(len(counts)))) > lines:
        able = [i for i, section in enumerate(sections) if counts[i] > section.least]
        if not able:
            break
        counts[max(able, key=lambda index: (-sections[index].worth, height(index)))] -= 1
    return counts


def _height(entry: Entry, width: int) -> int:
    return sum(
        len(textwrap.wrap(_plain(_cut(line.pieces)), width - line.indent)) or 1
        for line in entry.lines
    )


def _plain(pieces: Sequence[Piece]) -> str:
    return "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces)


def _cut(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, safe to show, and no longer than a few lines."""
    left = LONGEST * (COLUMNS - 20)
    found: list[Piece] = []
    for piece in pieces:
        text, style = (piece, "") if isinstance(piece, str) else piece
        text = shown(text)
        if len(text) > left:
            found.append((text[: max(left - 3, 0)] + "...", style))
            break
        left -= len(text)
        found.append((text, style))
    return found
