"""What an experiment came to, as CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from weft.analysis.experiment import LOSS, Arm, Difference, Findings, Score, Spread
from weft.analysis.statistics import Interval
from weft.core.files import Record, write_atomic, write_json
from weft.runs.layout import ExperimentLayout


def write_findings(found: Findings, layout: ExperimentLayout) -> None:
    """Write `results.csv`, `curves.csv` and `summary.json`."""
    write_atomic(layout.results, _csv(results_rows(found)))
    write_atomic(layout.curves, _csv(curve_rows(found)))
    write_json(layout.summary, summary(found), sort_keys=False)


def results_rows(found: Findings) -> list[Record]:
    """One record an arm and seed, the base first."""
    common = {"split": found.split, "rows": found.rows, "metric": found.metric}
    rows: list[Record] = []
    if found.base:
        rows.append(_result(found.record.before, common, found.base))
    for arm in found.arms:
        for run in arm.seeds:
            rows.append(
                _result(arm.name, common, run.score)
                | {
                    "seed": run.seed,
                    "status": arm.status,
                    "steps": run.points[-1].step if run.points else 0,
                    "forwards": run.points[-1].forwards if run.points else 0,
                    "seconds_per_step": arm.seconds_per_step,
                    "kept_step": run.kept_step,
                    "commits": len(run.commits),
                    "kept_commits": run.kept_commits,
                }
            )
    return rows


def curve_rows(found: Findings) -> list[Record]:
    """One record an arm, seed and step."""
    return [
        {
            "arm": arm.name,
            "seed": run.seed,
            "step": point.step,
            "forwards": point.forwards,
            "train_loss": point.train,
            "train_loss_perturbed": point.perturbed,
            "valid_loss": point.valid,
            "valid_accuracy": point.accuracy,
        }
        for arm in found.arms
        for run in arm.seeds
        for point in run.points
    ]


def summary(found: Findings) -> Record:
    """The table of an experiment as plain values; a number that there is not is null."""
    return {
        "name": found.record.name,
        "seeds": found.record.seeds,
        "budget": found.record.budget,
        "split": found.split,
        "rows": found.rows,
        "metric": found.metric,
        "reference": found.record.reference,
        "base": vars(found.base) if found.base else None,
        "arms": {arm.name: _summary_of(found, arm) for arm in found.arms},
    }


def _result(arm: str, common: Record, score: Score | None) -> Record:
    """The columns of `results.csv`, in order; the base has none of what training leaves."""
    return {
        "arm": arm,
        "seed": None,
        "status": None,
        **common,
        "value": score.metric if score else None,
        "loss": score.loss if score else None,
        "steps": None,
        "forwards": None,
        "seconds_per_step": None,
        "kept_step": None,
        "commits": None,
        "kept_commits": None,
    }


def _summary_of(found: Findings, arm: Arm) -> Record:
    return {
        "status": arm.status,
        "trouble": arm.trouble,
        **arm.record.settings,
        "steps": arm.step,
        "forwards": arm.forwards,
        "commits": {run.seed: len(run.commits) for run in arm.seeds},
        "kept_commits": {run.seed: run.kept_commits for run in arm.seeds},
        "seconds_per_step": arm.seconds_per_step,
        "shares_forwards_with": arm.shares_with,
        "metric": _spread(arm.metric),
        "loss": _spread(arm.loss),
        "difference": _difference(found.difference(arm)),
        "loss_difference": _difference(found.difference(arm, LOSS)),
        "remarks": arm.record.remarks,
    }


def _difference(difference: Difference | None) -> Record | None:
    if difference is None:
        return None
    return {
        **_interval(difference.mean),
        "seeds": difference.seeds,
        "wins": difference.wins,
        "ties": difference.ties,
        "losses": difference.losses,
    }


def _spread(spread: Spread | None) -> Record | None:
    if spread is None:
        return None
    return {**_interval(spread.mean), "sd": _number(spread.sd), "seeds": spread.seeds}


def _interval(interval: Interval) -> Record:
    ends = {"mean": interval.estimate, "low": interval.low, "high": interval.high}
    return {name: _number(value) for name, value in ends.items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _csv(rows: Sequence[Record]) -> str:
    """Rows of the same columns; floats read back exactly, and None is empty."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
