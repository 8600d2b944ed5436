"""Loss curves as PNG files: of runs, and of the arms of an experiment.

Lines are labelled where they end, so there is no legend to look up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from weft.analysis.experiment import Line
from weft.report.canvas import (
    COLOURS,
    OTHERS,
    QUIET,
    Label,
    canvas,
    dress,
    held_out,
    label_ends,
    number,
    padded,
    save,
)

_SMOOTHED_FRACTION = 1 / 30  # of the run, that a pass of the running mean looks at
_TICKS = 60
"""Most marks of commits on a line: more are only a texture."""

Points = Sequence[tuple[float, float]]
"""(step, loss), by step."""


@dataclass(frozen=True)
class Curve:
    """The losses of one member over its training."""

    label: str
    train: Points
    valid: Points = ()
    perturbed: bool = False  # `train` is of points around theta, not of theta
    commits: Sequence[int] = ()  # steps


def loss_curve(curves: Sequence[Curve], path: Path, *, unit: str = "nats a token") -> None:
    """Draw training and held-out loss over the steps, with marks on the axis for commits.

    One curve shows training (every step pale, its running mean strong) and held-out loss in two
    colours. Several show a colour per member: held-out loss strong where there is any, else the
    running mean. Of more members than colours the best one is named and the others are grey.
    """
    figure, axes = canvas(7.2, 3.9)
    curves = [curve for curve in curves if curve.train or curve.valid]
    alone = len(curves) == 1
    labels = _one_member(axes, curves[0]) if alone else _many_members(axes, curves)
    axes.set_xlim(*_steps(curves))
    axes.set_ylim(*_losses(curves))
    commits = sorted({step for curve in curves for step in curve.commits})
    axes.vlines(
        commits, 0, 0.025, QUIET, linewidth=0.7, transform=axes.get_xaxis_transform(), zorder=5
    )
    dress(axes, "step", _losses_title(curves, unit, len(commits)))
    label_ends(figure, axes, labels)
    save(figure, path)


def arms_loss(
    lines: Mapping[str, Line],
    path: Path,
    *,
    axis: str,
    seeds: int,
    measured: str = "loss, nats per token",
) -> None:
    """Draw the arms of an experiment: the mean over seeds of what is `measured`, by default a loss.

    With several seeds it lies in a band, from the lowest to the highest seed. Commits are small
    marks on the line. Arms that diverged do not stretch the range that is shown.
    """
    figure, axes = canvas(7.2, 4.3)
    labels: list[Label] = []
    for index, (name, line) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        style = ("-", (0, (4, 1.5)), (0, (1, 1)))[index // len(COLOURS) % 3]
        if seeds > 1:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.14, linewidth=0)
        axes.plot(
            line.x,
            line.mean,
            color=colour,
            linestyle=style,
            linewidth=1.8,
            marker="o" if len(line.x) == 1 else "",
            zorder=4,
        )
        if 0 < len(line.commits) <= _TICKS:
            at, height = zip(*line.commits, strict=True)
            axes.plot(at, height, "|", color=colour, markersize=7, alpha=0.6, zorder=3)
        end = "diverged" if line.diverged else f"{line.mean[-1]:.3f}"
        if line.diverged:
            axes.plot(line.x[-1], line.mean[-1], "x", color=colour, markersize=7, zorder=5)
        labels.append((line.mean[-1], f"{name}: {end}", colour))
    xs = [x for line in lines.values() for x in line.x]
    low, high = _shown(lines.values())
    axes.set_xlim(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
    axes.set_ylim(low, high)
    dress(axes, axis, _arms_title(lines, measured, seeds))
    label_ends(figure, axes, [(min(max(y, low), high), text, colour) for y, text, colour in labels])
    save(figure, path)


def running_mean(losses: ArrayLike, width: int) -> np.ndarray:
    """Mean over a centred window of `width` steps; losses that are not finite are left out."""
    values = np.asarray(losses, dtype=np.float64)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    low = np.maximum(index - width // 2, 0)
    high = np.minimum(index + (width + 1) // 2, len(values))
    number = counts[high] - counts[low]
    total = sums[high] - sums[low]
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)


def _arms_title(lines: Mapping[str, Line], measured: str, seeds: int) -> str:
    parts = [f"validation {measured}"]
    if seeds > 1:
        parts.append(f"line: mean of {seeds} seeds, band: lowest to highest")
    else:
        parts.append("one seed")
    counts = [len(line.commits) for line in lines.values()]
    if any(0 < count <= _TICKS for count in counts):
        parts.append("|: a commit")
    return "; ".join(parts)


def _shown(lines: Iterable[Line]) -> tuple[float, float]:
    """A range for all that did not diverge, and for where the others started."""
    lines = list(lines)
    sound = [line for line in lines if not line.diverged]
    values = [value for line in sound or lines for value in (*line.low, *line.high)]
    return padded([*values, *(line.mean[0] for line in lines)])


def _losses_title(curves: Sequence[Curve], unit: str, commits: int) -> str:
    parts = [f"loss, {unit}"]
    if len(curves) > 1 and any(curve.train and curve.valid for curve in curves):
        at = " (perturbed points)" if any(curve.perturbed for curve in curves) else ""
        parts.append(f"held-out with points, training{at} pale")
    if commits:
        parts.append("marks below: commits")
    return "; ".join(parts)


def _one_member(axes: Axes, curve: Curve) -> list[Label]:
    blue, orange = COLOURS[:2]
    labels = []
    if curve.train:
        steps, raw, mean = _smoothed(curve.train)
        axes.plot(steps, raw, color=blue, linewidth=0.8, alpha=0.3)
        marker = "o" if len(steps) == 1 else ""
        axes.plot(steps, mean, color=blue, linewidth=1.8, marker=marker)
        what = "training, perturbed points" if curve.perturbed else "training"
        labels.append((mean[-1], f"{what} {number(mean[-1])}", blue))
    if curve.valid:
        labels.append(_held_out(axes, curve.valid, orange, "held-out"))
    return labels


def _many_members(axes: Axes, curves: Sequence[Curve]) -> list[Label]:
    coloured = len(curves) <= len(COLOURS)
    best = min(curves, key=_final, default=None)
    labels = []
    for index, curve in enumerate(curves):
        if not coloured and curve is not best:
            axes.plot(*_main_line(curve), color=OTHERS, linewidth=0.9)
            continue
        name = curve.label if coloured else f"best, {curve.label}:"
        colour = COLOURS[index if coloured else 0]
        if not curve.valid:
            steps, losses = _main_line(curve)
            axes.plot(steps, losses, color=colour, linewidth=1.6, zorder=3)
            labels.append((losses[-1], f"{name} {number(losses[-1])}", colour))
            continue
        if curve.train:
            steps, _, mean = _smoothed(curve.train)
            axes.plot(steps, mean, color=colour, linewidth=1.0, alpha=0.45, zorder=3)
        labels.append(_held_out(axes, curve.valid, colour, name))
    return labels


def _held_out(axes: Axes, points: Points, colour: str, name: str) -> Label:
    loss = held_out(axes, points, colour, zorder=4)
    return loss, f"{name} {number(loss)}", colour


def _main_line(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses that a member is judged by: held-out, or the running mean of training."""
    if curve.valid:
        steps, losses = np.array(curve.valid, dtype=np.float64).T
        return steps, losses
    steps, _, mean = _smoothed(curve.train)
    return steps, mean


def _final(curve: Curve) -> float:
    last = _main_line(curve)[1][-1]
    return last if np.isfinite(last) else np.inf


def _smoothed(points: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps, losses = np.array(points, dtype=np.float64).T
    width = max(1, round(len(losses) * _SMOOTHED_FRACTION))
    # twice: one pass would turn a spike into a box
    return steps, losses, running_mean(running_mean(losses, width), width)


def _steps(curves: Sequence[Curve]) -> tuple[float, float]:
    steps = [step for curve in curves for step, _ in (*curve.train, *curve.valid)] or [0]
    low, high = min(steps), max(steps)
    pad = 0.01 * (high - low) or 1.0
    return low - pad, high + pad


def _losses(curves: Sequence[Curve]) -> tuple[float, float]:
    """A range for everything but single steps that stand out: one spike must not flatten a run."""
    shown = [loss for curve in curves for _, loss in curve.valid]
    for curve in curves:
        if curve.train:
            _, raw, mean = _smoothed(curve.train)
            raw = raw[np.isfinite(raw)]
            shown += [*mean, *(np.quantile(raw, [0.01, 0.99]) if len(raw) else [])]
    return padded(shown)
