"""`weft report`: a run as figures and one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli import screen
from weft.cli.checks import checks

if TYPE_CHECKING:
    from weft.core.keys import Key
    from weft.core.table import ScoreTable
    from weft.report.html import Figure, Metric, Report, Sample
    from weft.runs.reader import RunReader

COMPARISON = "compare"
"""The result in a run that holds a comparison of the base with its adapter."""

SUMMARY = (
    "base",
    "data",
    "objective",
    "method",
    "adapter",
    "start",
    "boosting",
    "length",
    "keeps",
)


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
        from weft.report.experiment import curves_figure, write_experiment

        found = write_experiment(run)
        for path in (curves_figure(found, experiment), experiment.times_figure, experiment.report):
            if path.is_file():
                screen.put(str(path))
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
        sides=_sides(reader),
        metrics=metrics,
        metrics_note=note,
        figures=[
            figure
            for name, caption in CURVES.items()
            for figure in _drawn(layout.figures / name, caption)
        ],
        population=_population(reader),
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


def _sides(reader: RunReader) -> tuple[str, str]:
    """What is shown left and right: rewards are of the run itself, unless they were compared."""
    if reader.measured.name == "reward" and COMPARISON not in reader.result_names():
        return ("before", "after")
    return ("base", "adapter")


def _drawn(path: Path, caption: str) -> list[Figure]:
    """A figure, if there is one."""
    from weft.report.html import Figure

    return [Figure(caption, path.read_bytes())] if path.exists() else []


def _headline(reader: RunReader, metrics: list[Metric]) -> str:
    from weft.report.html import change_headline
    from weft.runs.reader import step_loss

    measured = reader.measured
    first = metrics[0] if metrics else None
    if first and first.left is not None and first.right is not None:
        return change_headline(f"Held-out {measured.name}", first.left, first.right)
    steps = reader.steps()
    if not steps:
        return f"No step was taken; the run is {reader.manifest.status}"
    start, end = (measured.of(step_loss(record)) for record in (steps[0], steps[-1]))
    perturbed = "" if "loss" in steps[0] else " at perturbed points"
    return change_headline(f"Training {measured.name}{perturbed}", start, end)


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
    is_reward = found["objective"] == "reward"
    metrics = [
        Metric(name, found[key][a], found[key][b], _interval(found[f"{key}_difference"]))
        for name, key in (("held-out loss", "loss"), ("perplexity", "perplexity"))
        if found[key] and not is_reward
    ]
    for name, values in found["metrics"].items():
        label = name.replace("_", " ")
        if not is_reward:
            metrics.append(Metric(label, values[a], values[b], lower_is_better=False, style=".1%"))
        elif name == "reward":
            change = _interval(found["loss_difference"]).negated
            metrics.insert(0, Metric("held-out reward", values[a], values[b], change, False))
        else:
            metrics.append(Metric(label, values[a], values[b], lower_is_better=None))
    apart = found["divergence"]["kl_ab"]["estimate"]
    note = (
        f"On {found['examples']:,} {found['split']} rows with {found['supervised_tokens']:,} "
        f"{'tokens that the adapter said' if is_reward else 'supervised tokens'}; KL(base || "
        f"adapter) {screen.number(apart)} nats a token."
    )
    return metrics, note


def _before_and_after(reader: RunReader) -> tuple[list[Metric], str]:
    from weft.analysis.compare import perplexity, perplexity_difference
    from weft.analysis.statistics import paired_bootstrap
    from weft.core.keys import Key
    from weft.core.table import pair
    from weft.report.html import Metric
    from weft.runs.reader import NATS_A_TOKEN

    measured = reader.measured
    before, after = reader.table("valid-step-0"), reader.table("valid")
    best = _best(after)
    a, b = pair(before.row(best), after.row(best))
    key = Key.of(0).fold("report")
    change = paired_bootstrap(a.sums, a.counts, b.sums, b.counts, key)
    which = f" Of {len(after.members)} adapters this is {best}." if len(after.members) > 1 else ""
    rows = f"On {len(a.ids):,} validation rows, before training and after"
    if measured.name == "reward":
        return _rewards(reader, best, key), f"{rows}.{which}{_not_graded(reader, best)}"
    metrics = [Metric("held-out loss", a.mean, b.mean, change)]
    if measured.unit == NATS_A_TOKEN:
        apart = perplexity_difference(a, b, key, change)
        metrics.append(Metric("perplexity", perplexity(a.mean), perplexity(b.mean), apart))
    metrics += _accuracies(reader, best, key)
    known = {metric.label for metric in metrics}
    judged = _judgements(reader, "eval" if len(after.members) == 1 else f"eval-{best}")
    metrics += [metric for metric in judged if metric.label not in known]
    return metrics, f"{rows}; the loss is in {measured.unit}.{which}"


def _best(after: ScoreTable) -> str:
    """The member of the lowest loss, or of the highest reward."""
    return min(zip(after.means().tolist(), after.members, strict=True))[1]


def _rewards(reader: RunReader, member: str, key: Key) -> list[Metric]:
    """The reward, what it is made of, and the divergence from the base."""
    from weft.analysis.statistics import paired_bootstrap
    from weft.report.html import Metric

    result = reader.results(_evaluation_of(reader, member))
    pairs = reader.before_and_after(member)
    metrics = []
    for name in result["metrics"]:
        label = f"held-out {name}" if name == "reward" else name.replace("_", " ")
        better = None if name != "reward" else False
        if name not in pairs:
            metrics.append(Metric(label, None, result[name], None, better, ".4f"))
            continue
        a, b = pairs[name]
        change = paired_bootstrap(a.sums, a.counts, b.sums, b.counts, key.fold(name))
        metrics.append(Metric(label, a.mean, b.mean, change, better))
    return metrics


def _not_graded(reader: RunReader, member: str) -> str:
    """How many completions of the evaluation and of the steps could not be graded."""
    failures = reader.results(_evaluation_of(reader, member)).get("failures", {})
    said = [f"{count:,} ({why})" for why, count in failures.items()]
    steps = sum(record["failed"] for record in reader.steps())
    parts = [f" Not graded of these: {', '.join(said)}."] * bool(said)
    parts += [f" Not graded while training: {steps:,.0f}."] * bool(steps)
    return "".join(parts)


def _evaluation_of(reader: RunReader, member: str) -> str:
    """The name of a member's evaluation."""
    return f"eval-{member}" if f"eval-{member}" in reader.result_names() else "eval"


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

    if COMPARISON in reader.result_names():
        found = reader.results(COMPARISON)["samples"]
        return [Sample(s["prompt"], s["a"], s["b"], s["reference"] or None) for s in found]
    return _graded(reader)


def _graded(reader: RunReader) -> list[Sample]:
    """Completions that were graded, before training and of the kept adapter."""
    from weft.report.html import Sample
    from weft.runs.reader import COMPLETIONS, COMPLETIONS_BEFORE

    if not {COMPLETIONS, COMPLETIONS_BEFORE} <= set(reader.result_names()):
        return []
    before, after = reader.results(COMPLETIONS_BEFORE), reader.results(COMPLETIONS)
    member = _best(reader.table("valid"))
    pairs = zip(before[member], after[member], strict=False)  # fewer rows may be scored at first
    return [
        Sample(a["prompt"], a["completion"], b["completion"], notes=(_grade(a), _grade(b)))
        for a, b in pairs
    ]


def _grade(completion: dict[str, Any]) -> str:
    """A reward and what it is made of, in a line."""
    reward = {"reward": completion["reward"]}
    return ", ".join(
        f"{name.replace('_', ' ')} {screen.number(value)}"
        for name, value in (reward | completion).items()
        if name not in ("id", "prompt", "completion")
    )


def _population(reader: RunReader) -> list[tuple[str, str]]:
    """How the generations of a population went, beside its rewards."""
    from statistics import fmean

    steps = [record for record in reader.steps() if "reward_mean" in record]
    if not steps:
        return []
    flat = sum(bool(record["flat"]) for record in steps)
    moves = [record["update_noise"] for record in steps]
    return [
        ("completions", f"{sum(record['completions'] for record in steps):,.0f}"),
        ("not graded", f"{sum(record['failed'] for record in steps):,.0f}"),
        ("members that tie with another", f"{fmean(record['ties'] for record in steps):.0%}"),
        ("generations in which none was better", f"{flat:,} of {len(steps):,}"),
        ("a step, in units of the noise", f"{fmean(moves):.3g} on average, {moves[-1]:.3g} last"),
    ]


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
