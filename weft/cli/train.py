"""`weft train`: one run from start to end, or the rest of one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli import screen
from weft.cli.checks import certificate_lines, preflight
from weft.cli.launch import together
from weft.cli.progress import TrainingProgress
from weft.core.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from weft.engines.ranks import Ranks
    from weft.runs.reader import RunReader
    from weft.training.ending import Outcome
    from weft.training.fit import Progress
    from weft.training.train import Opened

INTERRUPTED = 130
LARGEST_LOSS = 700
"""Above it a perplexity is no number that a float can hold."""


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE|FILE", help="A recipe's name (`weft recipes`) or a file."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="Override settings, such as steps=100."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="ADAPTER", help="Start from it, as start=ADAPTER does."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write [default: below runs/].")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was interrupted.")
    ] = None,
) -> None:
    """Train a LoRA adapter.

    \b
    weft train instruct
    weft train instruct steps=100 adapter.rank=4 seeds=[0,1,2]
    weft train my.yaml --run-dir runs/mine
    weft train countdown --from weft/countdown-easy
    weft train --resume runs/mine
    """  # noqa: D301
    from weft.report.figures import draw_figures
    from weft.runs.reader import RunReader

    with together() as ranks:
        given = _with_start(settings or [], start)
        outcome = run_training(recipe, given, run_dir, resume, ranks)
    if ranks is not None and ranks.rank > 0:  # the first one shows what came out
        stop_if_interrupted(outcome)
        return
    reader = RunReader(outcome.root)
    draw_figures(reader)
    if not outcome.finished:
        show_times(reader, screen.say)
    stop_if_interrupted(outcome)
    screen.say()
    screen.put(results_table(outcome))
    for text in certificate_lines(reader):
        screen.put(text)
    show_times(reader)
    screen.put()
    screen.put(screen.pairs(places(outcome.root)))
    screen.say()
    screen.say(f"next: {screen.command('weft', 'compare', 'base', first_adapter(outcome.root))}")


def show_times(reader: RunReader, put: Callable[..., None] = screen.put) -> None:
    """Where the time of a run went."""
    from weft.report.times import times_note, times_table

    times = reader.times()
    if times is None:
        return
    shown = times_table(times)
    put()
    put(screen.table(shown.columns, [list(map(str, row)) for row in shown.rows]))
    if note := times_note(times):
        put(note)


def stop_if_interrupted(outcome: Outcome) -> None:
    """After Ctrl-C: say how to go on, and leave with the exit code of an interrupted program."""
    if outcome.finished:
        return
    screen.say(
        f"interrupted at step {outcome.step:,} of {outcome.steps:,}; resume with: "
        f"{screen.command('weft', 'train', '--resume', outcome.root)}"
    )
    raise typer.Exit(INTERRUPTED)


def first_adapter(root: Path) -> Path:
    """What a comparison takes: the run, or the first member of a run that trained several."""
    from weft.runs.reader import RunReader

    members = RunReader(root).member_names()
    return RunReader(root).layout.member(members[0]).root if members else root


def run_training(
    recipe: str | None,
    settings: list[str],
    run_dir: Path | None = None,
    resume: Path | None = None,
    ranks: Ranks | None = None,
) -> Outcome:
    """Train or resume with everything shown on stderr; without `ranks`, in this process alone."""
    if resume is not None:
        _refuse_overrides(resume, [word for word in (recipe, *settings) if word and "=" in word])
    if (recipe is None) == (resume is None):
        raise InputError(
            "give a recipe or a file to train, or --resume with a run; one of the two",
            hint="`weft recipes` lists the recipes; `weft train instruct` runs offline",
        )
    if resume is not None and run_dir is not None:
        raise InputError("--resume goes on in the run's own directory: leave out --run-dir")

    from weft.training.resolve import resolve

    resolved = None if recipe is None else resolve(recipe, settings)
    with screen.console().status("loading") as status, ExitStack() as display:
        from weft.engines.ranks import ALONE
        from weft.training import train as training

        shown: list[TrainingProgress] = []

        def announce(opened: Sequence[Opened]) -> None:
            status.stop()
            (run,) = opened
            job, manifest = run.job, run.manifest
            screen.say(screen.pairs(manifest.block | preflight(manifest.events)))
            screen.say()
            screen.notices(manifest.notices)
            told = set(manifest.notices)
            display.callback(lambda: screen.notices(_news(run.manifest.notices, told)))
            job.news.to(lambda text: screen.notices(_news([text], told)))
            step = max((e["step"] for e in manifest.events if e["kind"] == "resumed"), default=0)
            shown.append(display.enter_context(TrainingProgress(step, job.steps)))

        def watch(progress: Progress) -> None:
            shown[0](progress)

        if resolved is not None:
            return training.train(
                resolved, run_dir, announce=announce, watch=watch, ranks=ranks or ALONE
            )
        assert resume is not None
        return training.resume(resume, announce=announce, watch=watch, ranks=ranks or ALONE)


def _news(notices: Iterable[str], told: set[str]) -> list[str]:
    """Those that have not been told yet; they have been then."""
    new = [notice for notice in notices if notice not in told]
    told.update(new)
    return new


def _with_start(settings: Sequence[str], start: str | None) -> list[str]:
    """The settings, with that of `--from`."""
    if start is None:
        return [*settings]
    rival = next((setting for setting in settings if setting.startswith("start=")), None)
    if rival is not None:
        raise InputError(
            f"--from {start} and {rival} both say where to start", hint="give one of the two"
        )
    return [*settings, f"start={json.dumps(start)}"]


def _refuse_overrides(resume: Path, overrides: list[str]) -> None:
    from weft.runs.layout import RunLayout

    if overrides:
        raise InputError(
            f"a resumed run keeps its configuration: it cannot take {' '.join(overrides)}",
            hint="leave that out, or start a new run: "
            + screen.command("weft", "train", RunLayout(resume).config, *overrides),
        )


def results_table(outcome: Outcome) -> RenderableType:
    """Before and after: held-out loss, perplexity and the task's metrics of every adapter.

    A choice between candidates has no perplexity, and a reward goes before its parts. Where fewer
    rows were scored while training, both sides are shown on these, and the kept adapter on all.
    """
    from weft.runs.reader import RunReader

    reader, rows = RunReader(outcome.root), []
    names: list[str] = []
    for member, result in outcome.results.items():
        names = _names(result)
        label = "" if len(outcome.results) == 1 else f"{member}, "
        which = f"{label}{result['kept']} (step {result['step']:,})"
        scores = reader.before_and_after(member)
        if scores:
            both = [
                {n: row.mean for n, row in zip(scores, side, strict=True)}
                | {"standard_error": side[0].standard_error}
                for side in zip(*scores.values(), strict=True)
            ]
            count = len(scores["loss"][0].ids)
            some = "" if count == result["num_examples"] else f", first {count:,} rows"
            rows.append((f"{label}before{some}", *_cells(both[0], names)))
            if some:
                rows.append((f"{which}{some}", *_cells(both[1], names)))
                which += f", all {result['num_examples']:,} rows"
        rows.append((which, *_cells(result | {"loss": result["eval_loss"]}, names)))
    words = [name.replace("_", " ") for name in names]
    return screen.table(("held-out", *words), rows)


def _names(result: Mapping[str, Any]) -> list[str]:
    """What is shown of an evaluation: a reward and its parts, or a loss and the metrics."""
    metrics: list[str] = result["metrics"]
    if result["objective"] == "reward":
        return [metrics[0], "standard_error", *metrics[1:]]
    # a task's own metrics, where it has some
    of_tokens = "token_accuracy" in metrics
    return ["loss", *["perplexity"] * of_tokens, *(metrics[1:] or metrics)]


def _cells(values: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Numbers as they are shown; a dash for what was not measured."""
    loss = values["loss"]
    is_loss = loss is not None and loss < LARGEST_LOSS
    known = {"perplexity": exp(loss) if is_loss else None} | dict(values)
    return [screen.number(known.get(name)) for name in names]


def places(root: Path) -> dict[str, str]:
    """Where a run and its adapters are."""
    from weft.runs.reader import RunReader

    reader = RunReader(root)
    layout, members = reader.layout, reader.member_names()
    adapters = {f"adapter {name}": layout.member(name).adapter for name in members}
    found = {"run": root, **(adapters or {"adapter": layout.adapter})}
    return {label: str(path) for label, path in found.items()}
