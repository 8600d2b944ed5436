"""The figures of a run."""

from __future__ import annotations

from pathlib import Path

from weft.report.plots import Curve, loss_curve
from weft.report.times import time_breakdown
from weft.runs.reader import RunReader, loss_unit, step_loss
from weft.runs.timing import TIMES

LOSSES = "loss.png"
TIMES_FIGURE = f"{TIMES}.png"


def draw_figures(reader: RunReader) -> list[Path]:
    """Write what a run has figures of: its losses, and where its time went."""
    figures = reader.layout.figures
    drawn = [figures / LOSSES]
    loss_curve(curves(reader), drawn[0], unit=loss_unit(reader.manifest.config))
    if times := reader.times():
        drawn.append(figures / TIMES_FIGURE)
        time_breakdown(times, drawn[-1])
    return drawn


def curves(reader: RunReader) -> list[Curve]:
    """Training and held-out losses of every member, by step, and when it committed."""
    train: dict[str, list[tuple[float, float]]] = {}
    valid: dict[str, list[tuple[float, float]]] = {}
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
    for step, table in reader.evaluations():
        for member, loss in zip(table.members, table.means().tolist(), strict=True):
            valid.setdefault(member, []).append((step, loss))
    return [
        Curve(member, points, valid.get(member, ()), perturbed, commits.get(member, ()))
        for member, points in train.items()
    ]
