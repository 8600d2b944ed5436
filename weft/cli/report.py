"""`weft report`: a run as figures and one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli import screen
from weft.cli.checks import checks

if TYPE_CHECKING:
    from weft.core.keys import Key
    from weft.report.html import Figure, Metric, Report, Sample
    from weft.runs.reader import RunReader

COMPARISON = "compare"
"""The result in a run that holds a comparison of the base with its adapter."""

SUMMARY = ("base", "data", "objective", "method", "adapter", "boosting", "length", "keeps")


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The directory of a run, or of an experiment.")
    ],
) -> None:
    """Write figures and report.html of a run or an experiment.

    Needs no model. With `weft compare base RUN --out RUN/results/compare.json` before, the page
    also shows the texts of base and adapter side by side.
    """
    from weft.report.figures import draw_figures
    from weft.runs.layout import ExperimentLayout
    from weft.runs.reader import RunReader

    experiment = ExperimentLayout(run)
    if experiment.record.is_file():
        from weft.report.experiment import write_experiment

        write_experiment(run)
        screen.put(f"{experiment.loss_figure}\n{experiment.report}")
        return
    reader = RunReader(run)
    for path in (*draw_figures(reader), write_page(reader)):
        screen.put(str(path))


def write_page(reader: RunReader) -> Path:
    """Write the report of a run."""
    from weft.report.html import write_report

    write_report(reader.layout.report, page(reader))
    return reader.layout.report


def page(reader: RunReader) -> Report:
    """Everything that the page of a run shows, from its files alone."""
    from weft.report.figures import CURVES, TIMES_FIGURE
    from weft.report.html import Report, Table
    from weft.report.times import times_note, times_table

    manifest, layout = reader.manifest, reader.layout
    metrics, note = _metrics(reader)
    times = reader.times()
    return Report(
        title=f"run {manifest.name}",
        headline=_headline(reader, metrics),
        summary=[(label, manifest.block[label]) for label in SUMMARY if label in manifest.block],
        metrics=metrics,
        metrics_note=note,
        figures=[
            figure
            for name, caption in CURVES.items()
            for figure in _drawn(layout.figures / name, caption)
        ],
        times=times_table(times) if times else None,
        times_figures=_drawn(layout.figures / TIMES_FIGURE, "Where the time of the run went."),
        times_note=times_note(times) if times else "",
        checks=checks(reader),
        samples=_samples(reader),
        notices=manifest.notices,
        configuration=[
            (key, f"{value}   ({manifest.origins.get(key, 'default')})")
            for key, value in screen.leaves(manifest.config).items()
        ],
        sites=Table(
            ("site", "rank", "scale"),
            [(name, facts["rank"], facts["scale"]) for name, facts in manifest.sites.items()],
        ),
        provenance=_provenance(reader),
        commands=[
            manifest.command,
            screen.command("weft", "compare", "base", layout.root),
            screen.command(
                "weft", "inspect", layout.root, *["--replay"] * layout.evidence.exists()
            ),
        ],
    )


def _drawn(path: Path, caption: str) -> list[Figure]:
    """A figure, if there is one."""
    from weft.report.html import Figure

    return [Figure(caption, path.read_bytes())] if path.exists() else []


def _headline(reader: RunReader, metrics: list[Metric]) -> str:
    from weft.report.html import change_headline
    from weft.runs.reader import step_loss

    first = metrics[0] if metrics else None
    if first and first.left is not None and first.right is not None:
        return change_headline("Held-out loss", first.left, first.right)
    steps = reader.steps()
    if not steps:
        return f"No step was taken; the run is {reader.manifest.status}"
    what = "Training loss" if "loss" in steps[0] else "Training loss at perturbed points"
    return change_headline(what, step_loss(steps[0]), step_loss(steps[-1]))


def _metrics(reader: RunReader) -> tuple[list[Metric], str]:
    """Base against adapter: from the stored comparison, else from the run's own evaluations."""
    if COMPARISON in reader.result_names():
        return _compared(reader.results(COMPARISON))
    if {"valid", "valid-step-0"} <= set(reader.table_names()):
        return _before_and_after(reader)
    return [], ""


def _compared(found: dict[str, Any]) -> tuple[list[Metric], str]:
    from weft.report.html import Metric

    a, b = found["a"], found["b"]
    metrics = [
        Metric(name, found[key][a], found[key][b], _interval(found[f"{key}_difference"]))
        for name, key in (("held-out loss", "loss"), ("perplexity", "perplexity"))
    ]
    for name, values in found["metrics"].items():
        label = name.replace("_", " ")
        metrics.append(Metric(label, values[a], values[b], lower_is_better=False, style=".1%"))
    apart = found["divergence"]["kl_ab"]["estimate"]
    note = (
        f"On {found['examples']:,} {found['split']} rows with {found['supervised_tokens']:,} "
        f"supervised tokens; KL(base || adapter) {screen.number(apart)} nats a token."
    )
    return metrics, note


def _before_and_after(reader: RunReader) -> tuple[list[Metric], str]:
    import numpy as np

    from weft.analysis.compare import perplexity, perplexity_difference
    from weft.analysis.statistics import paired_bootstrap
    from weft.core.keys import Key
    from weft.core.table import pair
    from weft.report.html import Metric
    from weft.runs.reader import NATS_A_TOKEN, loss_unit

    before, after = reader.table("valid-step-0"), reader.table("valid")
    best = after.members[int(np.argmin(after.means()))]
    a, b = pair(before.row(best), after.row(best))
    key = Key.of(0).fold("report")
    change = paired_bootstrap(a.sums, a.counts, b.sums, b.counts, key)
    unit = loss_unit(reader.manifest.config)
    metrics = [Metric("held-out loss", a.mean, b.mean, change)]
    if unit == NATS_A_TOKEN:
        apart = perplexity_difference(a, b, key, change)
        metrics.append(Metric("perplexity", perplexity(a.mean), perplexity(b.mean), apart))
    metrics += _accuracies(reader, best, key)
    known = {metric.label for metric in metrics}
    judged = _judgements(reader, "eval" if len(after.members) == 1 else f"eval-{best}")
    metrics += [metric for metric in judged if metric.label not in known]
    which = f" Of {len(after.members)} adapters this is {best}." if len(after.members) > 1 else ""
    note = f"On {len(a.ids):,} validation rows, before training and after; the loss is in {unit}."
    return metrics, note + which


def _accuracies(reader: RunReader, member: str, key: Key) -> list[Metric]:
    """What was right before the first step and is right now, where both are known."""
    from weft.analysis.statistics import paired_bootstrap
    from weft.report.html import Metric

    metrics = []
    for name, (a, b) in reader.before_and_after(member).items():
        if name != "loss":
            change = paired_bootstrap(a.sums, a.counts, b.sums, b.counts, key.fold(name))
            label = name.replace("_", " ")
            metrics.append(Metric(label, a.mean, b.mean, change, False, ".1%"))
    return metrics


def _judgements(reader: RunReader, name: str) -> list[Metric]:
    """The task's metrics, which are measured of the kept adapter only."""
    from weft.report.html import Metric

    found = reader.results(name) if name in reader.result_names() else {}
    return [
        Metric(metric.replace("_", " "), None, found[metric], lower_is_better=False, style=".1%")
        for metric in found.get("metrics", ())
    ]


def _samples(reader: RunReader) -> list[Sample]:
    from weft.report.html import Sample

    if COMPARISON not in reader.result_names():
        return []
    found = reader.results(COMPARISON)["samples"]
    return [Sample(s["prompt"], s["a"], s["b"], s["reference"]) for s in found]


def _interval(ends: dict[str, float | None]) -> Any:
    from math import nan

    from weft.analysis.statistics import Interval

    values = {name: nan if value is None else value for name, value in ends.items()}
    return Interval(**values)


def _provenance(reader: RunReader) -> list[tuple[str, str]]:
    manifest = reader.manifest
    facts = {"status": manifest.status, "created": manifest.created, "command": manifest.command}
    facts |= {f"version of {name}": version for name, version in manifest.versions.items()}
    facts |= {name: str(value) for name, value in manifest.hardware.items() if value}
    facts |= {f"sha256 of {stage}": digest for stage, digest in manifest.fingerprints.items()}
    return list(facts.items())
