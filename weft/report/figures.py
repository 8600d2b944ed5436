"""The figures of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from weft.core.files import Record
from weft.report.plots import Curve, loss_curve
from weft.report.rewards import Climb, reward_curve
from weft.report.times import time_breakdown
from weft.runs.reader import RunReader, step_loss
from weft.runs.timing import TIMES

CURVES = {
    "reward.png": "Rewards over the steps, of the centre, its population and held-out rows.",
    "loss.png": "Training and held-out loss over the steps.",
}
"""What a run may have a figure of, and what is said of it."""
TIMES_FIGURE = f"{TIMES}.png"


def draw_figures(reader: RunReader) -> list[Path]:
    """Write what a run has figures of: its losses or rewards first, and where its time went."""
    measured, figures = reader.measured, reader.layout.figures
    drawn = [figures / f"{measured.name}.png"]
    if measured.name == "reward":
        reward_curve(climbs(reader), drawn[0])
    else:
        loss_curve(curves(reader), drawn[0], unit=measured.unit)
    if times := reader.times():
        drawn.append(figures / TIMES_FIGURE)
        time_breakdown(times, drawn[-1])
    return drawn


def curves(reader: RunReader) -> list[Curve]:
    """Training and held-out losses of every member, by step, and when it committed."""
    train: dict[str, list[tuple[float, float]]] = {}
    valid = _held_out(reader)
    perturbed = False
    for record in reader.steps():
        perturbed = "loss" not in record
        train.setdefault(record.get("member", "adapter"), []).append(
            (record["step"], step_loss(record))
        )
    commits: dict[str, list[int]] = {}
    for event in reader.manifest.events:
        if event["kind"] == "commit":
            commits.setdefault(event["member"], []).append(event["step"])
    return [
        Curve(member, points, valid.get(member, ()), perturbed, commits.get(member, ()))
        for member, points in train.items()
    ]


def climbs(reader: RunReader) -> list[Climb]:
    """The rewards of every member's population, by step."""
    records: dict[str, list[Record]] = {}
    for record in reader.steps():
        records.setdefault(record.get("member", "adapter"), []).append(record)
    valid = _held_out(reader)
    return [
        Climb(
            member,
            steps=[record["step"] for record in its],
            centre=_column(its, "reward"),
            mean=_column(its, "reward_mean"),
            std=_column(its, "reward_std"),
            best=_column(its, "reward_best"),
            valid=valid.get(member, ()),
        )
        for member, its in records.items()
    ]


def _held_out(reader: RunReader) -> dict[str, list[tuple[float, float]]]:
    """Every member's losses, or rewards, on the validation rows, by step."""
    measured = reader.measured
    found: dict[str, list[tuple[float, float]]] = {}
    for step, table in reader.evaluations():
        for member, loss in zip(table.members, table.means().tolist(), strict=True):
            found.setdefault(member, []).append((step, measured.of(loss)))
    return found


def _column(records: Sequence[Record], name: str) -> list[float]:
    """One number of each record; NaN where nothing could be graded."""
    return [math.nan if record[name] is None else record[name] for record in records]
