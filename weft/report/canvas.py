"""What all figures share: a canvas, its colours, labels and files.

matplotlib's object interface only: no pyplot, no global state, no display. The colours are those of
Okabe and Ito ("Color Universal Design", 2008), which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from weft.core.files import write_atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")
INK = "#222222"
QUIET = "#767676"
GRID = "#E6E6E6"
OTHERS = "#C8C8C8"
DPI = 200
FONT = 9.0  # points

Label = tuple[float, str, str]  # height, text, colour


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches, with the look that all have."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
    axes.tick_params(length=0, labelsize=FONT, labelcolor=INK, pad=6)
    axes.tick_params(axis="x", length=3, color=QUIET)
    axes.set_axisbelow(True)
    return figure, axes


def dress(axes: Axes, across: str, title: str) -> None:
    """Ticks, a grid, and words on the axis and above."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_xlabel(across, color=QUIET, fontsize=FONT)
    axes.set_title(title, loc="left", color=QUIET, fontsize=FONT, pad=10)


def label_ends(figure: Figure, axes: Axes, labels: Sequence[Label]) -> None:
    """Write the labels right of the lines, level with their ends."""
    low, high = axes.get_ylim()
    points = axes.get_position().height * figure.get_figheight() * 72
    ordered = sorted(label for label in labels if np.isfinite(label[0]))
    heights = spread([y for y, _, _ in ordered], 1.35 * FONT * (high - low) / points, high)
    for (_, text, colour), y in zip(ordered, heights, strict=True):
        axes.annotate(
            text,
            (axes.get_xlim()[1], y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center_baseline",
            color=colour,
            fontsize=FONT,
            annotation_clip=False,
            parse_math=False,
        )


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


def padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values that are finite, and a little more."""
    finite = [value for value in values if np.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", bbox_inches="tight", pad_inches=0.12, metadata={"Software": None}
    )
    write_atomic(path, buffer.getvalue())


def number(value: float) -> str:
    """A loss, as short as it can be read."""
    return f"{value:.2f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"


def held_out(axes: Axes, points: Sequence[tuple[float, float]], colour: str, zorder: int) -> float:
    """Draw (step, value) of evaluations as a line with points; the last value."""
    steps, values = np.array(points, dtype=np.float64).T
    axes.plot(
        steps,
        values,
        color=colour,
        linewidth=1.8,
        marker="o",
        markersize=4.5 if len(steps) <= 40 else 0,
        markeredgecolor="white",
        markeredgewidth=0.8,
        zorder=zorder,
    )
    return float(values[-1])
