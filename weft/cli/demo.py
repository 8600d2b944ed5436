"""`weft demo`: the main job on the bundled base, offline, in minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from weft.cli import screen
from weft.cli.compare import scores, show_samples
from weft.cli.progress import rows_progress
from weft.cli.report import COMPARISON, write_page
from weft.cli.train import run_training, stop_if_interrupted
from weft.core.errors import InputError

RECIPE = "instruct"
SHOWN = 2
"""Prompts on the screen; the report has more."""


def demo(
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write [default: below runs/].")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="Override settings, such as epochs=1."),
    ] = None,
) -> None:
    """Train, evaluate and compare an adapter on the bundled base.

    Needs no network. Writes a run with its adapter, loss curve and report.html.
    """
    from weft import compare
    from weft.core.files import free_directory, write_json
    from weft.report.figures import draw_figures
    from weft.runs.reader import RunReader

    _refuse_what_cannot_end(settings or [])
    started = time.monotonic()
    root = run_dir or free_directory(Path("runs"), "demo")
    outcome = run_training(RECIPE, settings or [], root)
    stop_if_interrupted(outcome)
    reader = RunReader(root)
    with rows_progress("comparing on the test rows") as watch:
        found = compare("base", root, split="test", prompts=8, watch=watch)
    write_json(reader.layout.result(COMPARISON), screen.finite(found.record()))
    figures, page = draw_figures(reader), write_page(reader)

    change = found.loss_difference
    screen.say()
    screen.put(
        screen.table(
            (f"{found.examples} test rows", "base", "adapter", "change"),
            [line[:-1] for line in scores(found)],
        )
    )
    screen.put(
        f"\nloss changes by {change.estimate:.3f}, 95 % interval {change.low:.3f} to "
        f"{change.high:.3f}; the base's weights did not change (sha256 "
        f"{reader.manifest.fingerprints['base'][:12]})"
    )
    show_samples(found, SHOWN)
    screen.put()
    screen.put(
        screen.pairs(
            {
                "adapter": str(reader.layout.adapter),
                "loss curve": str(figures[0]),
                "report": str(page),
                "time": f"{time.monotonic() - started:.0f} s",
            }
        )
    )
    screen.say()
    screen.say(f"next: open {page} in a browser, or {screen.command('weft', 'inspect', root)}")


def _refuse_what_cannot_end(settings: list[str]) -> None:
    """Before training: one adapter is compared with the base, on test rows."""
    from weft.data.dataset import available_splits
    from weft.training.resolve import resolve

    config = resolve(RECIPE, settings).config
    lanes, splits = config.lanes, available_splits(config.data)
    if len(lanes) > 1:
        raise InputError(
            f"the demo compares one adapter with the base, and these settings train {len(lanes)}: "
            f"{', '.join(lane.name for lane in lanes)}",
            hint=f"train them with {screen.command('weft', 'train', RECIPE, *settings)}",
        )
    if "test" not in splits:
        raise InputError(
            f"the demo ends on test rows, and the data has none: only {', '.join(splits)}",
            hint="give data.test_path, or use `weft train` and `weft compare`",
        )
