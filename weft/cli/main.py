"""The `weft` command: one verb per file, and one place where errors become words and exit codes.

The modules of this package load nothing heavy. A verb imports what it needs when it runs, so that
`weft --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from weft import __version__
from weft.cli import launch, screen
from weft.cli.check import check
from weft.cli.compare import compare
from weft.cli.demo import demo
from weft.cli.diff import diff
from weft.cli.doctor import doctor
from weft.cli.eval import evaluate
from weft.cli.experiment import experiment
from weft.cli.export import export
from weft.cli.generate import generate
from weft.cli.import_ import import_
from weft.cli.inspect import inspect
from weft.cli.recipes import recipes
from weft.cli.record import RecordCommand, record
from weft.cli.report import report
from weft.cli.train import train
from weft.core.errors import WeftError
from weft.core.threads import wait_politely

VERBS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "train": train,
    "experiment": experiment,
    "eval": evaluate,
    "generate": generate,
    "compare": compare,
    "record": record,
    "diff": diff,
    "doctor": doctor,
    "inspect": inspect,
    "export": export,
    "import": import_,
    "report": report,
    "check": check,
    "recipes": recipes,
}

PARSERS = {"record": RecordCommand}
"""Verbs whose command line is not like the others'."""

UNWRITABLE = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Why standard output takes nothing more; errors of files name their file."""

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What the parser of the command line raises; typer exports only this subclass of it."""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
for name, verb in VERBS.items():
    app.command(name, cls=PARSERS.get(name))(verb)


@app.callback(invoke_without_command=True)
def weft(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Train, evaluate, compare and explain LoRA adapters over one frozen base model."""
    if version:
        print(f"weft {__version__}")
        raise typer.Exit
    launch.settle(context.invoked_subcommand)
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 fine, 1 the answer is no, 2 the input is wrong."""
    _settle()
    try:
        code = app(args=arguments, prog_name="weft", standalone_mode=False)
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        _let_go_of_stdout()
        if isinstance(error, BrokenPipeError):  # whoever read it has seen enough
            return 1
        screen.complain(f"cannot write to standard output: {error.strerror}")
        return 2
    except WeftError as error:
        launch.complain(error.problem, error.hint)
        return error.exit_code
    except UsageError as error:
        launch.complain(*_usage(error))
        return 2
    return code if isinstance(code, int) else 0


def _let_go_of_stdout() -> None:
    """Throw away what it did not take, else Python tries again at its end and complains."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage(error: Any) -> tuple[str, str]:
    """Problem and hint of a command line that could not be understood."""
    message = error.format_message().rstrip(".")
    problem = message[0].lower() + message[1:]
    context = error.ctx
    path = context.command_path if context else "weft"
    hint = f"see `{path} --help`"
    parameters = context.command.params if context else ()
    settings = any(parameter.name == "settings" for parameter in parameters)
    if settings and hasattr(error, "option_name"):
        hint = f"settings are given as key=value, such as steps=100; {hint}"
    return problem, hint


def _settle() -> None:
    """Keep other people's warnings and progress bars off the screen, unless somebody asks."""
    wait_politely()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # what failed in the end is said once
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: nobody listens
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a character the terminal lacks ends no command
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
