"""`weft record`: run a Python program and keep what it computed, so that it can be compared."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from weft.cli import screen
from weft.core.errors import InputError

if TYPE_CHECKING:
    from weft.runs.recording import Recording

ENVIRONMENT = dict(os.environ)
"""As it was given, before Weft settled its own: the script gets that."""


class RecordCommand(TyperCommand):
    """The verb's parser: everything after `--` is the program's, so there must be one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse a program without `--`, whose options could be taken for those of the verb."""
        if "--" not in args and not {"--help", "-h"} & set(args):
            raise InputError(
                "the program to record comes after `--`",
                hint="`weft record -- python train.py --steps 100`",
            )
        return super().parse_args(ctx, args)


def record(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="-- COMMAND", help="python SCRIPT, python -m MODULE, or a command in Python."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to put it [default: recordings/NAME]."),
    ] = None,
) -> None:
    """Run a Python program unchanged, and record what it computes for `weft diff`.

    The program knows nothing of it and prints, returns and writes what it would alone. Recorded
    are prompts, token ids, models, adapters, forward passes, generations, training steps, merges,
    seeds and versions: small values whole, tensors as digests and sketches.

    Example: `weft record --out good -- python generate.py --prompt "Hello"`
    """
    from weft.core.files import free_directory
    from weft.diagnose.record.launch import end_like, run, understand
    from weft.runs.recording import Recording, is_recording

    program = understand(words)
    root = out if out is not None else free_directory(Path("recordings"), program.name)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} is there already", hint="give --out an empty directory")
    code = run(program, root, ENVIRONMENT)
    if is_recording(root):
        try:
            screen.say(_words(Recording(root)))
        except InputError as error:  # the exit code is the program's, whatever became of this
            screen.say(f"recorded: {root}, which cannot be read: {error.problem}")
    raise typer.Exit(end_like(code))


def _words(recording: Recording) -> str:
    """The line at the end."""
    about = recording.about
    count = len(recording.events) if about.events is None else about.events
    text = f"recorded: {recording.root} ({count:,} events"
    if not recording.whole:
        return f"{text}; the program was ended before it could finish)"
    spent = 0.0 if about.overhead_seconds is None else about.overhead_seconds
    return f"{text}, overhead {spent:.1f} s of {about.seconds or 0:.1f} s)"
