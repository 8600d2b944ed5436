"""An experiment as tables of words, a figure, and one self-contained page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weft.analysis.experiment import (
    LOSS,
    METRIC,
    Arm,
    Findings,
    Measure,
    line,
    read_experiment,
    rewards_of,
)
from weft.analysis.experiment_tables import write_findings
from weft.analysis.statistics import Interval
from weft.report.html import ExperimentReport, Figure, Table, write_report
from weft.report.plots import arms_loss
from weft.report.times import time_breakdown, times_table
from weft.runs.experiment import ExperimentReader, listed
from weft.runs.layout import ExperimentLayout

NONE = "-"
TIMES_CAPTION = (
    "Where the time of the training went: arms that trained together count once, and the scores at "
    "the end are not in it."
)
AXES = {"forwards": "forwards of one batch, for each seed", "steps": "steps"}


def write_experiment(root: Path) -> Findings:
    """Read an experiment and write its tables, its figures and its page."""
    layout, found, reader = ExperimentLayout(root), read_experiment(root), ExperimentReader(root)
    write_findings(found, layout)
    if not draw(found, layout):
        curves_figure(found, layout).unlink(missing_ok=True)
    if times := reader.times():
        time_breakdown(times, layout.times_figure)
    write_report(layout.report, page(found, reader))
    return found


def curves_figure(found: Findings, layout: ExperimentLayout) -> Path:
    """Where the arms' losses, or rewards, are drawn."""
    return layout.reward_figure if found.of_rewards else layout.loss_figure


def draw(found: Findings, layout: ExperimentLayout) -> bool:
    """Draw the arms' validation losses, or rewards.

    False when no arm was evaluated while training, and where some have losses, others rewards.
    """
    lines = {arm.name: drawn for arm in found.arms if (drawn := line(arm, found.record.x))}
    if not lines or found.of_rewards is None:
        return False
    if found.of_rewards:
        lines = {name: rewards_of(drawn) for name, drawn in lines.items()}
    arms_loss(
        lines,
        curves_figure(found, layout),
        axis=AXES[found.record.x],
        seeds=len(found.record.seeds),
        measured="reward, higher is better" if found.of_rewards else f"loss, {loss_unit(found)}",
    )
    return True


def loss_unit(found: Findings) -> str:
    """What the losses are counted in."""
    objectives = [arm.record.settings["objective"] for arm in found.arms]
    if any(objective != objectives[0] for objective in objectives):
        return "nats (the arms have different objectives)"
    if objectives[0]["name"] == "nll":
        return "nats a token"
    if objectives[0].get("loss") == "option":
        return "nats a token of the right answer"
    return "nats a row, over the candidates"


def scores_table(found: Findings, measure: Measure = METRIC) -> Table:
    """A measure, its spread over seeds, and the paired difference to the reference."""
    reference = found.record.reference
    what = "loss" if measure == LOSS else found.metric.replace("_", " ") or "metric"
    columns = (
        "arm",
        what,
        "sd",
        "95 % interval",
        f"minus {reference}",
        "95 % interval",
        "w/t/l",
    )
    rows: list[tuple[str, ...]] = []
    if found.base:
        base = found.base
        rows.append((found.record.before, _number(measure.of(base)), *[NONE] * 5))
    for arm in found.arms:
        spread, apart = arm.over_seeds(measure), found.difference(arm, measure)
        if spread is None:
            rows.append((arm.name, arm.status, *[NONE] * 5))
            continue
        rows.append(
            (
                arm.name,
                _number(spread.mean.estimate),
                _number(spread.sd),
                _ends(spread.mean),
                NONE if apart is None else _number(apart.mean.estimate, "+.4f"),
                NONE if apart is None else _ends(apart.mean, "+.3f"),
                NONE if apart is None else f"{apart.wins}/{apart.ties}/{apart.losses}",
            )
        )
    return Table(columns, rows)


def scores_notes(found: Findings) -> list[str]:
    """What the numbers of the scores' table are."""
    seeds = len(found.record.seeds)
    on = f"On {found.rows:,} {found.split} rows." if found.rows else "Nothing is scored yet."
    if seeds == 1:
        return [f"{on} One seed: what another would have come to is not known."]
    over = (
        f"Means over {seeds} seeds; sd and intervals (Student's t) are over seeds and say nothing "
        "of other rows than these."
    )
    paired = (
        f"Differences to {found.record.reference} are paired by seed (the same rows in the same "
        "order); w/t/l counts seeds won, tied and lost: a higher metric, or a lower loss, wins."
    )
    return [f"{on} {over}", paired]


def arms_table(found: Findings) -> Table:
    """What every arm was, and how far it came."""
    columns = (
        "arm",
        "method",
        "rank",
        "scale",
        "lr",
        "rows",
        "steps",
        "forwards",
        "commits",
        "s/step",
    )
    rows = []
    for arm in found.arms:
        its = arm.record.settings
        rows.append(
            (
                arm.name,
                f"{its['method']}, {its['optimiser']}",
                f"{its['rank']}",
                f"{its['scale']:g}",
                f"{its['lr']:g}",
                f"{its['batch_size'] or 'all'}",
                f"{arm.step:,}",
                f"{arm.forwards:,}",
                _commits(arm),
                NONE if arm.seconds_per_step is None else f"{arm.seconds_per_step:.3g}",
            )
        )
    return Table(columns, rows)


def arms_notes(found: Findings) -> list[str]:
    """What the numbers of the arms' table are."""
    seeds = len(found.record.seeds)
    whose = "all seeds" if seeds > 1 else "the seed"
    steps = f"Rows are those of one step; s/step is the median over steps, for {whose}"
    shared = [group for group in found.record.groups if len(group) > 1]
    if not shared:
        return [f"{steps}. A backward pass counts as a forward."]
    groups = " / ".join(map(listed, shared))
    return [
        f"{steps}, and where arms shared their forwards ({groups}) an arm's part of it. A backward "
        "pass counts as a forward."
    ]


def remarks(found: Findings) -> list[str]:
    """What a reader must know before comparing: divergence, unfairness, what was not used."""
    said = []
    for arm in found.arms:
        if arm.trouble:
            said.append(f"{arm.name} diverged after step {arm.step:,}: {arm.trouble}")
        elif arm.status == "unfinished":
            said.append(f"{arm.name} is not finished: it is at step {arm.step:,}")
        unmoved = [run.seed for run in arm.seeds if run.kept_step == 0]
        if unmoved:
            said.append(
                f"{arm.name}: no evaluation was better than the one before the first step for seed "
                f"{', '.join(map(str, unmoved))}: what is kept there is the base"
            )
    return said + found.record.notes()


def headline(found: Findings) -> str:
    """The arm of the highest mean, and whether the seeds tell it from the reference."""
    scored = [(arm.metric.mean.estimate, arm) for arm in found.arms if arm.metric is not None]
    if not scored:
        return "No arm has been scored"
    value, best = max(scored, key=lambda each: each[0])
    what = found.metric.replace("_", " ")
    beside = [f"{found.record.before} {_number(found.base.metric)}"] if found.base else []
    apart = found.difference(best)
    if apart is not None:
        at = sum(score.metric for score in found.reference.scores.values()) / len(
            found.reference.scores
        )
        beside.insert(0, f"{found.record.reference} {_number(at)}")
    verdict = ""
    if apart is not None and apart.seeds > 1 and not apart.mean.excludes_zero:
        verdict = f"; {apart.seeds} seeds do not tell it from {found.record.reference}"
    said = f" ({', '.join(beside)})" if beside else ""
    return f"{best.name} scores highest: {what} {_number(value)}{said}{verdict}"


def page(found: Findings, reader: ExperimentReader) -> ExperimentReport:
    """Everything that the page of an experiment shows."""
    record, layout = found.record, reader.layout
    figure, times = curves_figure(found, layout), reader.times()
    common, differing = _configurations({name: arm.config for name, arm in record.arms.items()})
    return ExperimentReport(
        title=f"experiment {record.name}" + (f": {record.description}" * bool(record.description)),
        headline=headline(found),
        summary=_summary(found),
        notices=remarks(found),
        scores=scores_table(found),
        losses=None if found.of_rewards else scores_table(found, LOSS),
        scores_notes=scores_notes(found),
        figure=Figure(_caption(found), figure.read_bytes()) if figure.exists() else None,
        times=times_table(times) if times else None,
        times_figure=Figure(TIMES_CAPTION, layout.times_figure.read_bytes()) if times else None,
        arms=arms_table(found),
        arms_notes=arms_notes(found),
        differences=differing,
        configuration=common,
        provenance=_provenance(found, reader),
        commands=[
            record.command,
            *(f"weft report {layout.arm(arm.slug).root}" for arm in record.arms.values()),
        ],
    )


def _summary(found: Findings) -> list[tuple[str, str]]:
    record = found.record
    facts = {
        "arms": f"{len(found.arms)}",
        "seeds": ", ".join(map(str, record.seeds)),
        "budget": ", ".join(f"{count:,} {what}" for what, count in record.budget.items()),
        "scored on": f"{found.rows:,} {found.split} rows" if found.rows else NONE,
        "reference": record.reference,
        "status": record.status,
    }
    return list(facts.items())


def _caption(found: Findings) -> str:
    what = "Validation reward" if found.of_rewards else "Validation loss"
    if len(found.record.seeds) == 1:
        return f"{what} of the one seed."
    return f"{what}: mean over seeds, in a band from the lowest to the highest seed."


def _configurations(
    arms: Mapping[str, Mapping[str, Any]],
) -> tuple[list[tuple[str, str]], Table]:
    """What all arms have, and a table of what they differ in."""
    flat = {name: dict(_leaves(config)) for name, config in arms.items()}
    keys = list(dict.fromkeys(key for values in flat.values() for key in values))
    common, differing = [], []
    for key in keys:
        values = [values.get(key, NONE) for values in flat.values()]
        if len(set(values)) == 1:
            common.append((key, values[0]))
        else:
            differing.append((key, *values))
    return common, Table(("setting", *arms), differing)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, json.dumps(value, ensure_ascii=False)))
    return found


def _provenance(found: Findings, reader: ExperimentReader) -> list[tuple[str, str]]:
    record = found.record
    facts = {"created": record.created, "command": record.command}
    run = reader.run(record.arms[record.reference])
    if run is not None:
        manifest = run.manifest
        facts |= {f"version of {name}": version for name, version in manifest.versions.items()}
        facts |= {name: str(value) for name, value in manifest.hardware.items() if value}
        facts |= {
            f"sha256 of {stage}": manifest.fingerprints[stage]
            for stage in ("code", "base")
            if stage in manifest.fingerprints
        }
    return list(facts.items())


def _commits(arm: Arm) -> str:
    """How often an arm committed; where it did, of how many commits the kept adapters consist."""
    made = _span([len(run.commits) for run in arm.seeds])
    kept = [run.kept_commits for run in arm.seeds if run.kept_commits is not None]
    return f"{made} (kept {_span(kept)})" if kept and made != "0" else made


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"


def _number(value: float | None, style: str = ".4f") -> str:
    return NONE if value is None or not math.isfinite(value) else format(value, style)


def _ends(interval: Interval, style: str = ".3f") -> str:
    if math.isnan(interval.low):
        return NONE
    return f"{interval.low:{style}} to {interval.high:{style}}"
