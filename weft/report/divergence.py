"""Where two sides part, as PNG files: by layer, by position, by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from weft.report.canvas import COLOURS, QUIET, Label, canvas, dress, label_ends, number, save

LEAST = 1e-6
"""Where an axis ends on which everything is 0."""
MEASURES = {
    "kl": ("KL", "KL(A || B), nats"),
    "relative": ("difference", "relative difference, B against A"),
}
"""How a measure is called beside its line, and above it."""
MOST_NAMES = 14
MOST_CHARACTERS = 70
"""Of names of layers below an axis: those of more layers are thinned out, or turned."""


def by_layer(curve: Mapping[str, Any], path: Path) -> None:
    """Relative error of the hidden states after each block, and made in it, beside the floor.

    `names` are those of the layers, `cumulative` and, where there is one, `local` are errors, and
    `floor` is what noise alone gives.
    """
    names = [str(name).removeprefix("model.") for name in curve["names"]]
    figure, axes = canvas(7.2, 3.6)
    lines = {"after the layer": curve["cumulative"], "made in the layer": curve.get("local")}
    labels = _decades(axes, range(len(names)), lines, curve.get("floor"))
    _dress(axes, "layer", "relative difference of the hidden states, B against A", lines)
    shown = range(0, len(names), max(1, -(-len(names) // MOST_NAMES)))
    axes.set_xticks(list(shown), [names[i] for i in shown], parse_math=False)
    if sum(len(names[i]) for i in shown) > MOST_CHARACTERS:
        for text in axes.get_xticklabels():
            text.set(rotation=35, horizontalalignment="right", rotation_mode="anchor")
    label_ends(figure, axes, labels)
    save(figure, path)


def along(curve: Mapping[str, Any], path: Path, *, across: str, measure: str) -> None:
    """A measure at each position, prompt or decoding step, beside the floor."""
    figure, axes = canvas(7.2, 3.3)
    name, title = MEASURES[measure]
    lines = {name: curve[measure]}
    labels = _decades(axes, curve[across], lines, curve.get("floor"), joined=across != "prompt")
    _dress(axes, across, title, lines)
    label_ends(figure, axes, labels)
    save(figure, path)


def by_step(curve: Mapping[str, Any], path: Path, first: int | None = None) -> None:
    """What both sides measured at each training step, and the first step at which they part."""
    figure, axes = canvas(7.2, 3.6)
    labels: list[Label] = []
    for index, side in enumerate("ab"):
        values = [_value(value) for value in curve[side]]
        colour = COLOURS[index]
        axes.plot(
            curve["step"],
            values,
            color=colour,
            linewidth=2.6 - 1.2 * index,  # where they are equal both can be seen
            marker="o" if len(values) == 1 else "",
            alpha=0.55 if index == 0 else 1.0,
            zorder=3 + index,
        )
        if values:
            labels.append((values[-1], f"{side.upper()} {number(values[-1])}", colour))
    title = f"{curve.get('name', 'loss')} of both"
    if first is not None:
        axes.axvline(first, color=QUIET, linewidth=0.9, linestyle=(0, (3, 2)), zorder=2)
        title += f"; dashed: step {first}, where they part"
    dress(axes, "step", title)
    label_ends(figure, axes, labels)
    save(figure, path)


def _decades(
    axes: Axes,
    at: Sequence[float],
    lines: Mapping[str, Sequence[float | None] | None],
    floor: float | None,
    joined: bool = True,
) -> list[Label]:
    """Draw the logarithms of what may span decades, and the floor; the labels of the lines.

    What is 0 is drawn at the bottom, what is not finite at the top. Points of which none comes
    after another are not joined.
    """
    known = {name: [_value(v) for v in values] for name, values in lines.items() if values}
    sound = [v for values in known.values() for v in values if 0 < v < math.inf]
    sound += [floor] if floor else []
    low = math.floor(math.log10(min(sound, default=LEAST))) - 0.3
    high = math.log10(max(sound, default=1.0)) + 0.25

    def height(value: float) -> float:
        if math.isnan(value):
            return value
        return high if value == math.inf else max(math.log10(value), low) if value > 0 else low

    labels: list[Label] = []
    for index, (name, values) in enumerate(known.items()):
        colour = COLOURS[index]
        axes.plot(
            list(at),
            [height(value) for value in values],
            color=colour,
            linewidth=1.8 if joined else 0,
            marker="o",
            markersize=3.5 if len(values) <= 60 else 0,
            clip_on=False,
            zorder=4,
        )
        last = next((v for v in reversed(values) if not math.isnan(v)), math.nan)
        labels.append((height(last), f"{name} {last:.2g}", colour))
    if floor:
        axes.axhspan(low, height(floor), color=QUIET, alpha=0.10, linewidth=0)
        labels.append((height(floor), f"noise alone {floor:.2g}", QUIET))
    axes.set_ylim(low, max(high, low + 1))
    pad = 0.02 * (max(at) - min(at)) or 0.5
    axes.set_xlim(min(at) - pad, max(at) + pad)
    return labels


def _as_power(exponent: float, _: float) -> str:
    return f"{float(f'{10.0**exponent:.1g}'):g}"


def _dress(
    axes: Axes, across: str, title: str, lines: Mapping[str, Sequence[float | None] | None]
) -> None:
    zero = any(value == 0 for values in lines.values() if values for value in values)
    scale = "a logarithmic scale" + (", 0 at the bottom" if zero else "")
    dress(axes, across, f"{title}; {scale}")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_formatter(_as_power)


def _value(value: float | None) -> float:
    return math.nan if value is None else float(value)
