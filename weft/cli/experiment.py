"""`weft experiment`: arms that differ in some settings, trained with the same seeds, compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weft.cli import options, screen
from weft.cli.progress import TrainingProgress, rows_progress
from weft.cli.train import INTERRUPTED
from weft.core.errors import InputError

if TYPE_CHECKING:
    from weft.analysis.experiment import Findings
    from weft.report.html import Table
    from weft.training.experiment import Plan
    from weft.training.fit import Progress
    from weft.training.train import Opened


def experiment(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|FILE", help="An experiment's name (`weft recipes`) or a file."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="key=value",
            help="Override settings: run.KEY, arms.ARM.KEY, seeds, budget.steps.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write [default: below runs/].")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with an interrupted experiment.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be run; no weights are loaded.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Compare arms over seeds, at equal steps or forwards.

    \b
    weft experiment reviews-methods --dry-run
    weft experiment mine.yaml seeds=[0,1] budget.forwards=400 run.batch_size=8
    weft experiment --resume runs/mine
    """  # noqa: D301
    _refuse_contradictions(config, settings or [], out, resume, dry_run)
    planned = None if config is None else _plan(config, settings or [])
    if dry_run:
        assert config is not None and planned is not None
        _show_plan(planned, json)
        if not json:
            screen.say()
            screen.say(f"next: {screen.command('weft', 'experiment', config, *(settings or []))}")
        return

    from weft.report.experiment import write_experiment
    from weft.runs.experiment import ExperimentReader
    from weft.training import experiment as training

    with ExitStack() as stack:
        display = _Display(stack)
        watchers = training.Watchers(
            display.group,
            display.announce,
            display.step,
            display.scoring,
            lambda text: screen.notices([text]),
        )
        if resume is None:
            assert planned is not None
            screen.notices(planned.record.notes())
            root = training.start(planned, out, watchers)
        else:
            root = training.resume(resume, planned, watchers)
    found = write_experiment(root)
    if ExperimentReader(root).record.status != "finished":
        again = screen.command("weft", "experiment", "--resume", root)
        screen.say(f"interrupted; resume with: {again}")
        raise typer.Exit(INTERRUPTED)
    if json:
        from weft.analysis.experiment_tables import summary

        screen.put_json(summary(found))
        return
    show(found)
    screen.say()
    screen.say(screen.pairs(_places(root)))


def show(found: Findings) -> None:
    """Print what an experiment came to."""
    from weft.analysis.experiment import LOSS
    from weft.report.experiment import (
        arms_notes,
        arms_table,
        headline,
        remarks,
        scores_notes,
        scores_table,
    )

    losses = [] if found.of_rewards else [scores_table(found, LOSS)]
    *scores, last = [scores_table(found), *losses]
    shown: list[tuple[Table, list[str]]] = [(arms_table(found), arms_notes(found))]
    shown += [(table, []) for table in scores]
    for made, notes in [*shown, (last, scores_notes(found))]:
        screen.put(screen.table(made.columns, [[str(cell) for cell in row] for row in made.rows]))
        screen.put()
        for sentence in notes:
            screen.put(sentence)
        if notes:
            screen.put()
    screen.put(headline(found))
    screen.notices(remarks(found))


def _refuse_contradictions(
    config: str | None, settings: Sequence[str], out: Path | None, resume: Path | None, dry: bool
) -> None:
    if config is None and resume is None:
        raise InputError(
            "give the name or the YAML file of an experiment, or --resume with a directory",
            hint="`weft recipes` lists the experiments; docs/experiments.md shows such a file",
        )
    if resume is not None and out is not None:
        raise InputError("--resume goes on in the experiment's own directory: leave out --out")
    if resume is not None and dry:
        raise InputError("--dry-run shows what a file would start: leave out --resume")
    if resume is not None and config is not None and "=" in config:
        raise InputError(
            f"a resumed experiment keeps its configuration: it cannot take {config}",
            hint="leave that out, or start a new experiment",
        )


def _plan(config: str, settings: Sequence[str]) -> Plan:
    from weft.training.experiment_config import read_design

    design = read_design(config, settings)  # a slip is answered before PyTorch is loaded
    with screen.console().status("loading"):
        from weft.training.experiment import plan

        return plan(design)


class _Display:
    """Everything that happens, on stderr: one live line at a time."""

    def __init__(self, display: ExitStack) -> None:
        self._display = display
        self._training: TrainingProgress | None = None
        self._scored = ""
        self._rows: Callable[[int, int], None] | None = None

    def group(self, names: Sequence[str], number: int, groups: int) -> None:
        """Arms begin to train."""
        from weft.runs.experiment import listed

        self._display.close()
        together = " together" if len(names) > 1 else ""
        screen.say(f"training{together}, {number + 1} of {groups}: {listed(names)}")

    def announce(self, opened: Sequence[Opened]) -> None:
        """They are loaded."""
        start = min(run.state.step for run in opened)
        progress = TrainingProgress(start, max(run.job.steps for run in opened))
        self._training = self._display.enter_context(progress)

    def step(self, progress: Progress) -> None:
        """A step is taken."""
        assert self._training is not None
        self._training(progress)

    def scoring(self, name: str, done: int, total: int) -> None:
        """Rows are scored."""
        if self._rows is None or name != self._scored:
            self._display.close()
            self._scored = name
            self._rows = self._display.enter_context(rows_progress(f"scoring {name}"))
        self._rows(done, total)


def _show_plan(planned: Plan, json: bool) -> None:
    from weft.runs.experiment import listed

    with screen.console().status("loading"):
        from weft.training.experiment import blocks

        shown = blocks(planned)
    if json:
        screen.put_json({"record": planned.record.model_dump(mode="json"), "blocks": shown})
        return
    names = list(shown)
    labels = list(dict.fromkeys(label for block in shown.values() for label in block))
    rows = {label: [shown[name].get(label, "-") for name in names] for label in labels}
    screen.put(screen.pairs({k: v[0] for k, v in rows.items() if len(set(v)) == 1}))
    screen.put()
    for name in names:
        differing = {k: shown[name].get(k, "-") for k, v in rows.items() if len(set(v)) > 1}
        screen.put(screen.pairs({"arm": name, **differing}))
        screen.put()
    for group in planned.record.groups:
        if len(group) > 1:
            screen.put(f"share every forward: {listed(group)}")
    screen.notices(planned.record.notes())


def _places(root: Path) -> dict[str, str]:
    from weft.runs.layout import ExperimentLayout

    layout = ExperimentLayout(root)
    drawn = [figure for figure in (layout.reward_figure, layout.loss_figure) if figure.is_file()]
    places = {
        "experiment": str(root),
        "report": str(layout.report),
        "figure": str(drawn[0]) if drawn else "",  # none without evaluations
        "tables": f"{layout.results}, {layout.curves}",
    }
    return {what: where for what, where in places.items() if where}
