"""Options that several commands have, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Subject = Annotated[
    str,
    typer.Argument(metavar="RUN|ADAPTER|base", help="A run, an adapter directory, or `base`."),
]
Base = Annotated[
    str | None,
    typer.Option(metavar="REF", help="The base model [default: the one that the adapter names]."),
]
Task = Annotated[str | None, typer.Option(metavar="NAME", help="Score on a bundled task's rows.")]
Data = Annotated[Path | None, typer.Option(metavar="FILE", help="Score on your own rows.")]
Split = Annotated[str, typer.Option(metavar="NAME", help="Which split: train, valid or test.")]
Rows = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Only the first rows [default: all].")
]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Rows of one forward.")]
Engine = Annotated[
    str, typer.Option(metavar="NAME", help="What computes: local (PyTorch) or mlx (mlx-lm).")
]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the JSON here.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
