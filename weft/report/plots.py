"""Figures as PNG files: loss curves, of runs and of the arms of an experiment; where time went.

matplotlib's object interface only: no pyplot, no global state, no display. The colours are those of
Okabe and Ito ("Color Universal Design", 2008), which colour-blind readers can tell apart. Lines are
labelled where they end, so there is no legend to look up.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from weft.analysis.experiment import Line
from weft.core.files import write_atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")
_INK = "#222222"
_QUIET = "#767676"
_GRID = "#E6E6E6"
_OTHERS = "#C8C8C8"
_DPI = 200
_FONT = 9.0  # points
_SMOOTHED_FRACTION = 1 / 30  # of the run, that a pass of the running mean looks at
_BARS = 9
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
    figure, axes = _canvas(7.2, 3.9)
    curves = [curve for curve in curves if curve.train or curve.valid]
    alone = len(curves) == 1
    labels = _one_member(axes, curves[0]) if alone else _many_members(axes, curves)
    axes.set_xlim(*_steps(curves))
    axes.set_ylim(*_losses(curves))
    commits = sorted({step for curve in curves for step in curve.commits})
    axes.vlines(
        commits, 0, 0.025, _QUIET, linewidth=0.7, transform=axes.get_xaxis_transform(), zorder=5
    )
    _dress(axes, "step", _losses_title(curves, unit, len(commits)))
    _label_ends(figure, axes, labels)
    _save(figure, path)


def arms_loss(
    lines: Mapping[str, Line], path: Path, *, axis: str, seeds: int, unit: str = "nats per token"
) -> None:
    """Draw the arms of an experiment: mean validation loss over seeds, in a band if several.

    The band goes from the lowest to the highest seed. Commits are small marks on the line. Arms
    that diverged do not stretch the losses that are shown.
    """
    figure, axes = _canvas(7.2, 4.3)
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
    _dress(axes, axis, _arms_title(lines, unit, seeds))
    _label_ends(
        figure, axes, [(min(max(y, low), high), text, colour) for y, text, colour in labels]
    )
    _save(figure, path)


def time_breakdown(seconds: Mapping[str, float], path: Path, *, total: float | None = None) -> None:
    """Draw how long each part took, longest first.

    With `total`, what the parts leave of it is shown as `other`, and shares are of `total`.
    """
    parts = sorted(seconds.items(), key=lambda part: -part[1])
    whole = sum(seconds.values()) if total is None else total
    parts, small = parts[:_BARS], parts[_BARS:]
    rest = whole - sum(value for _, value in parts)
    if small or rest > 0.005 * whole:
        parts.append(("other", rest))
    figure, axes = _canvas(7.2, 0.9 + 0.32 * len(parts))
    names = [name for name, _ in parts]
    values = [value for _, value in parts]
    colours = [_OTHERS if name == "other" else COLOURS[0] for name in names]
    axes.barh(names, values, color=colours, height=0.66)
    axes.invert_yaxis()
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    for row, value in enumerate(values):
        share = value / whole if whole else 0.0
        axes.annotate(
            f"{_duration(value)}   {share:.0%}" if share >= 0.01 else f"{_duration(value)}   <1%",
            (value, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=_FONT,
            color=_INK,
        )
    axes.set_xlim(0, max([*values, 1e-9]) * 1.25)
    axes.set_title(
        f"time in each part, of {_duration(whole)}",
        loc="left",
        color=_QUIET,
        fontsize=_FONT,
        pad=10,
    )
    _save(figure, path)


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


def spread(heights: Sequence[float], gap: float, top: float) -> list[float]:
    """Rising heights moved up, at least `gap` apart, and then down as far as `top` asks."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    limit = top
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def _arms_title(lines: Mapping[str, Line], unit: str, seeds: int) -> str:
    parts = [f"validation loss, {unit}"]
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
    return _padded([*values, *(line.mean[0] for line in lines)])


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values that are finite, and a little more."""
    finite = [value for value in values if np.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


Label = tuple[float, str, str]  # height, text, colour


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
        labels.append((mean[-1], f"{what} {_number(mean[-1])}", blue))
    if curve.valid:
        labels.append(_held_out(axes, curve.valid, orange, "held-out"))
    return labels


def _many_members(axes: Axes, curves: Sequence[Curve]) -> list[Label]:
    coloured = len(curves) <= len(COLOURS)
    best = min(curves, key=_final, default=None)
    labels = []
    for index, curve in enumerate(curves):
        if not coloured and curve is not best:
            axes.plot(*_main_line(curve), color=_OTHERS, linewidth=0.9)
            continue
        name = curve.label if coloured else f"best, {curve.label}:"
        colour = COLOURS[index if coloured else 0]
        if not curve.valid:
            steps, losses = _main_line(curve)
            axes.plot(steps, losses, color=colour, linewidth=1.6, zorder=3)
            labels.append((losses[-1], f"{name} {_number(losses[-1])}", colour))
            continue
        if curve.train:
            steps, _, mean = _smoothed(curve.train)
            axes.plot(steps, mean, color=colour, linewidth=1.0, alpha=0.45, zorder=3)
        labels.append(_held_out(axes, curve.valid, colour, name))
    return labels


def _held_out(axes: Axes, points: Points, colour: str, name: str) -> Label:
    steps, losses = np.array(points, dtype=np.float64).T
    axes.plot(
        steps,
        losses,
        color=colour,
        linewidth=1.8,
        marker="o",
        markersize=4.5 if len(steps) <= 40 else 0,
        markeredgecolor="white",
        markeredgewidth=0.8,
        zorder=4,
    )
    return losses[-1], f"{name} {_number(losses[-1])}", colour


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
    return _padded(shown)


def _label_ends(figure: Figure, axes: Axes, labels: Sequence[Label]) -> None:
    """Write the labels right of the lines, level with their ends."""
    low, high = axes.get_ylim()
    points = axes.get_position().height * figure.get_figheight() * 72
    ordered = sorted(label for label in labels if np.isfinite(label[0]))
    heights = spread([y for y, _, _ in ordered], 1.35 * _FONT * (high - low) / points, high)
    for (_, text, colour), y in zip(ordered, heights, strict=True):
        axes.annotate(
            text,
            (axes.get_xlim()[1], y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center_baseline",
            color=colour,
            fontsize=_FONT,
            annotation_clip=False,
            parse_math=False,
        )


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_QUIET)
    axes.tick_params(length=0, labelsize=_FONT, labelcolor=_INK, pad=6)
    axes.tick_params(axis="x", length=3, color=_QUIET)
    axes.set_axisbelow(True)
    return figure, axes


def _dress(axes: Axes, across: str, title: str) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_xlabel(across, color=_QUIET, fontsize=_FONT)
    axes.set_title(title, loc="left", color=_QUIET, fontsize=_FONT, pad=10)


def _save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", bbox_inches="tight", pad_inches=0.12, metadata={"Software": None}
    )
    write_atomic(path, buffer.getvalue())


def _number(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 90:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
