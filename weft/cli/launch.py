"""A verb in several processes: the first one speaks, and all leave with the same exit code."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from weft.cli import screen
from weft.core.errors import InputError, WeftError
from weft.core.launch import place

if TYPE_CHECKING:
    from weft.engines.ranks import Ranks

SEVERAL = ("train",)
"""The verbs that several processes share; none gains from doing the others several times."""
GRACE_SECONDS = 3.0
"""Launchers end the rest when one process has ended with an error: the first speaks before that."""


def settle(verb: str | None) -> None:
    """Before a verb: whether several processes can share it, and which of them speaks."""
    here = place()
    if here.rank > 0:
        screen.hush()
    if here.size > 1 and verb not in SEVERAL:
        raise InputError(
            f"`weft {verb or '--help'}` runs in one process, and this is one of {here.size}",
            hint="leave out the launcher: only `weft train` shares its work",
        )


def complain(problem: str, hint: str | None = None) -> None:
    """Print an error that all processes have found, in the one that speaks."""
    screen.complain(problem, hint)
    if screen.is_hushed():
        time.sleep(GRACE_SECONDS)


@contextmanager
def together() -> Iterator[Ranks | None]:
    """The processes of this launch; None: there is but this one.

    Of an error that ends them, one of them tells.
    """
    here = place()
    if here.size == 1:
        yield None
        return

    def tell(error: WeftError) -> None:
        screen.hush(False)
        screen.complain(error.problem, error.hint)

    from weft.engines.ranks import joined

    try:
        with joined(here, tell) as ranks:
            yield ranks
    except WeftError as error:
        raise typer.Exit(error.exit_code) from None
