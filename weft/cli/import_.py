"""`weft import`: an adapter in any format becomes Weft's own form, with a certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli import options
from weft.cli.export import OutDir, finish, required
from weft.cli.progress import rows_progress
from weft.core.errors import InputError

if TYPE_CHECKING:
    from weft.training.convert import Scale


def import_(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="An adapter directory, or its tensor file.")
    ],
    out: OutDir = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FORMAT",
            help="Insist on peft, mlx or npz [default: told by the tensors].",
        ),
    ] = None,
    base: options.Base = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|auto",
            help="What B @ A is multiplied by; auto scores what the files may mean on --data.",
        ),
    ] = None,
    task: options.Task = None,
    data: options.Data = None,
    json: options.Json = False,
) -> None:
    """Turn an adapter of PEFT, mlx-lm or mlx-examples into Weft's form, which is PEFT's.

    Where the files do not determine the scale, --scale must. Source and result are compared on
    real forwards, and certificate.json beside the result says what was found.
    """
    from weft import import_adapter

    place, wanted = required(out), _scale(scale)
    with rows_progress("importing") as watch:
        made = import_adapter(
            source,
            place,
            from_format=from_,
            base=base,
            scale=wanted,
            task=task,
            data=data,
            watch=watch,
        )
    finish(made, place, json=json)


def _scale(text: str | None) -> Scale:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"--scale is {text!r}, and it must be a number or `auto`",
            hint="`--scale 20`, or `--scale auto --data FILE`",
        ) from None
