"""`weft doctor`: a run, a recording or an adapter by itself, and what is odd about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli import screen
from weft.cli.options import Base, Json
from weft.cli.sections import Entry, Line, Section, put

if TYPE_CHECKING:
    from weft.diagnose.doctor import Checkup
    from weft.diagnose.lints.lint import Lint, State


def doctor(
    thing: Annotated[str, typer.Argument(metavar="RUN|RECORDING|ADAPTER", help="What to look at.")],
    base: Base = None,
    json: Json = False,
) -> None:
    """Look at a run, a recording or an adapter by itself.

    Is it attached, at which scale, in which mode; what of padding, labels,
    context and merges is odd; does it agree with itself? Needs no weights.
    Exits with 1 when something cannot be meant.
    """
    from weft.diagnose.doctor import doctor as look

    found = look(thing, base)
    if json:
        screen.put_json(found.record())
    else:
        put(sections(found))
    if not found.healthy:
        raise typer.Exit(1)


def sections(found: Checkup) -> list[Section]:
    """A checkup as it stands on the screen."""
    word, colour = ("healthy", "bold green") if found.healthy else ("not healthy", "bold red")
    return [
        Section("VERDICT", (Entry.of((word, colour), f". {found.words}"),)),
        Section("PROBLEMS", tuple(_lints(found, "problem", "bold red")), worth=2),
        Section("WARNINGS", tuple(_lints(found, "warning", "bold yellow")), worth=1),
        Section("FINE", tuple(_lints(found, "ok", "bold")), least=4),
        Section("NOT CHECKED", tuple(Entry.of(text) for text in found.not_checked), least=1),
        Section("COVERAGE", (Entry.of(f"{found.kind} {found.ref}, {found.seconds:.1f} s"),)),
    ]


def _lints(found: Checkup, state: State, style: str) -> Iterable[Entry]:
    for lint in found.lints:
        if lint.state == state:
            head = Line(((lint.name, style), f": {lint.words}"))
            mend = _mend(lint) if state != "ok" else ""
            yield Entry((head, Line((f"fix: {mend}",), indent=3)) if mend else (head,))


def _mend(lint: Lint) -> str:
    return "; ".join(part for part in (lint.fix, lint.where) if part)
