"""What commands print: data to stdout, everything else to stderr.

Nothing is wrapped or coloured where nobody looks: in a pipe or a file a table row is one line.
"""

from __future__ import annotations

import io
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    Renderable: TypeAlias = RenderableType

WIDE = 10_000
"""Columns of what is not a terminal."""

_hushed = [False]


def hush(hushed: bool = True) -> None:
    """Print nothing from here on, because another process speaks; or print again."""
    _hushed[0] = hushed
    _console.cache_clear()


def is_hushed() -> bool:
    """Whether another process speaks."""
    return _hushed[0]


def put(what: Renderable = "", *, columns: int | None = None) -> None:
    """Print data to stdout: a line of text as it is, or a table of at most so many columns."""
    _print(_console(False), what, columns)


def say(what: Renderable = "") -> None:
    """Print something for the person at the terminal, to stderr."""
    _print(_console(True), what)


def put_json(value: Any) -> None:
    """Print a value as JSON to stdout; a number that is not finite becomes null."""
    print(as_json(value, indent=2))


def as_json(value: Any, *, indent: int | None = None) -> str:
    """JSON for stdout: characters that it has no bytes for are escaped as JSON escapes them."""
    has_all = (sys.stdout.encoding or "").lower().startswith("utf")
    return json.dumps(finite(value), indent=indent, ensure_ascii=not has_all)


def complain(problem: str, hint: str | None = None) -> None:
    """Print an error in the one style that Weft has."""
    from rich.text import Text

    say(Text.assemble(("error", "bold red"), ": ", problem))
    if hint:
        say()
        say(Text.assemble(("hint", "bold"), ": ", hint))


def notices(texts: Sequence[str]) -> None:
    """Print what the user should know and did not ask for."""
    from rich.text import Text

    for text in texts:
        say(Text.assemble(("note", "bold yellow"), ": ", text))


def pairs(values: Mapping[str, str]) -> Renderable:
    """Labels and values in two columns; long values go on below themselves."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for label, value in values.items():
        grid.add_row(label, value)
    return grid


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True
) -> Renderable:
    """Rows under a header; columns after the first hold numbers, on the right, or text."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, name in enumerate(header):
        right = numbers and index > 0
        made.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as dotted keys and JSON."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.dumps(value, ensure_ascii=False)
    return found


def number(value: float | None) -> str:
    """A measured number with four digits, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-" if value is None else str(value)
    if 0.001 <= abs(value) < 10 or value == 0:
        return f"{value:.4f}"
    return f"{value:#.4g}".rstrip(".")


def command(*words: str | Path) -> str:
    """A command line that can be pasted into a shell."""
    return shlex.join(map(str, words))


def console() -> Console:
    """Where live displays go: stderr."""
    return _console(True)


def _print(console: Console, what: Renderable, columns: int | None = None) -> None:
    if isinstance(what, str) or type(what).__name__ == "Text":
        console.print(what, soft_wrap=True)
        return
    with console.capture() as captured:
        console.print(what, width=columns)
    for line in captured.get().splitlines():
        console.file.write(line.rstrip() + "\n")


@cache
def _console(stderr: bool) -> Console:
    from rich.console import Console

    file = _Nowhere() if _hushed[0] else None
    made = Console(file=file, stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = WIDE
    return made


class _Nowhere(io.StringIO):
    """A file that forgets what is written to it."""

    def write(self, text: str) -> int:
        return len(text)


def finite(value: Any) -> Any:
    """The value as JSON can hold it: a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
