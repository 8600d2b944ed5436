"""`python -m benchmarks.growth_figure`: every curve of growth, as it was last written down.

The picture lies beside the page, which shows it from then on.

One row of panels for time and one for memory, on logarithmic axes; the dashed line is what growth
in proportion would be, through the last point.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.growth import AXES, MIB, PAGE
from benchmarks.report import RESULTS, write_part
from weft.report.canvas import COLOURS, DPI, FONT, GRID, INK, QUIET, save

PATH = PAGE.parent / "growth.png"
PANELS_ACROSS = 5
PANEL = (2.8, 1.7)  # inches

Result = Mapping[str, Any]
"""A file of results."""


def newest(folder: Path = RESULTS) -> list[Result]:
    """The newest result of every axis, where there is one."""
    found = (max(folder.glob(f"????-??-??-{axis.label}.json"), default=None) for axis in AXES)
    return [json.loads(path.read_text()) for path in found if path is not None]


def drawn(results: Sequence[Result], path: Path) -> None:
    """Write the figure."""
    across = min(PANELS_ACROSS, len(results))
    down = -(-len(results) // across)
    size = (PANEL[0] * across, 2 * PANEL[1] * down)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for number, result in enumerate(results):
        row, column = divmod(number, across)
        for half, (words, values, colour) in enumerate(_readings(result)):
            place = (2 * row + half) * across + column + 1
            axes = figure.add_subplot(2 * down, across, place)
            _panel(axes, [point["value"] for point in result["points"]], values, colour)
            if not half:
                title = result["benchmark"].removeprefix("growth_").replace("_", " ")
                axes.set_title(title, loc="left", color=INK, fontsize=FONT)
            else:
                axes.set_xlabel(result["varies"], color=QUIET, fontsize=FONT)
            if column == 0:
                axes.set_ylabel(words, color=QUIET, fontsize=FONT)
    save(figure, path)


def _readings(result: Result) -> list[tuple[str, list[float], str]]:
    points = result["points"]
    return [
        ("seconds", [float(np.median(p["seconds"])) for p in points], COLOURS[0]),
        ("peak MiB", [float(np.median(p["peak_bytes"])) / MIB for p in points], COLOURS[1]),
    ]


def _panel(axes: Axes, across: Sequence[float], up: Sequence[float], colour: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(QUIET)
    axes.set_xticks(across[:: -(-len(across) // 5)])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for each in (axes.xaxis, axes.yaxis):
        each.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        each.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=FONT - 1, labelcolor=INK, color=QUIET)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.plot(across, up, color=colour, linewidth=1.8, marker="o", markersize=3.5)
    low, high = axes.get_ylim()
    in_proportion = [up[-1] * x / across[-1] for x in across]
    axes.plot(across, in_proportion, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.set_ylim(min(low, up[0] / 2), max(high, up[0] * 3))


def _short(value: float) -> str:
    """`64`, `8k` (of 1,000 or of 1,024), `1M`."""
    for letter, size in (("M", 10**6), ("k", 1024), ("k", 1000)):
        if value >= size and value % size == 0:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


if __name__ == "__main__":
    drawn(newest(), PATH)
    write_part("growth_figure", f"![Time and memory of every curve]({PATH.name})", PAGE)
    print(PATH)
