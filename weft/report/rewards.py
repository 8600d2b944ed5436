"""Rewards as PNG files: those of a population and of its centre, generation by generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

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

Points = Sequence[tuple[float, float]]
"""(step, reward), by step."""


@dataclass(frozen=True)
class Climb:
    """The rewards of one adapter's population, step by step; NaN where nothing was graded."""

    label: str
    steps: Sequence[int]
    centre: Sequence[float]
    mean: Sequence[float]
    std: Sequence[float]
    best: Sequence[float]
    valid: Points = ()


def reward_curve(climbs: Sequence[Climb], path: Path) -> None:
    """Draw rewards over the steps, higher being better.

    Of one adapter: its centre, the mean of the members in a band of one standard deviation, the
    best member, and held-out points. Of several: a colour each, held-out with points, the centre
    pale.
    """
    figure, axes = canvas(7.2, 3.9)
    climbs = [climb for climb in climbs if climb.steps or climb.valid]
    labels: list[Label] = []
    values: list[float] = []
    for index, climb in enumerate(climbs):
        alone = len(climbs) == 1
        colour = COLOURS[index % len(COLOURS)]
        name = "" if alone else f"{climb.label}: "
        if alone and climb.steps:
            labels += _population(axes, climb)
            values += [*climb.best, *_edge(climb, -1), *_edge(climb, +1)]
        if climb.steps:
            strong = alone or not climb.valid
            axes.plot(
                climb.steps,
                climb.centre,
                color=colour,
                linewidth=1.8 if strong else 1.0,
                alpha=1.0 if strong else 0.45,
                marker="o" if len(climb.steps) == 1 else "",
                zorder=4,
            )
            if strong:
                labels.append(_label(climb.centre[-1], f"{name}centre", colour))
        if climb.valid:
            labels.append(_held_out(axes, climb.valid, COLOURS[1] if alone else colour, name))
        values += [*climb.centre, *(reward for _, reward in climb.valid)]
    steps = [step for climb in climbs for step in (*climb.steps, *(at for at, _ in climb.valid))]
    low, high = (min(steps), max(steps)) if steps else (0, 1)
    pad = 0.01 * (high - low) or 1.0
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(*padded(values))
    dress(axes, "step", _title(climbs))
    label_ends(figure, axes, labels)
    save(figure, path)


def _edge(climb: Climb, side: int) -> list[float]:
    """The band's upper (+1) or lower (-1) edge."""
    return [mean + side * std for mean, std in zip(climb.mean, climb.std, strict=True)]


def _population(axes: Axes, climb: Climb) -> list[Label]:
    band = _edge(climb, -1), _edge(climb, +1)
    axes.fill_between(climb.steps, *band, color=OTHERS, alpha=0.45, linewidth=0)
    axes.plot(climb.steps, climb.mean, color=QUIET, linewidth=1.2)
    axes.plot(climb.steps, climb.best, color=COLOURS[2], linewidth=1.0, linestyle=(0, (3, 1.5)))
    return [
        _label(climb.mean[-1], "mean of members", QUIET),
        _label(climb.best[-1], "best member", COLOURS[2]),
    ]


def _held_out(axes: Axes, points: Points, colour: str, name: str) -> Label:
    return _label(held_out(axes, points, colour, zorder=5), f"{name}held-out", colour)


def _label(height: float, name: str, colour: str) -> Label:
    return height, f"{name} {number(height)}", colour


def _title(climbs: Sequence[Climb]) -> str:
    if len(climbs) == 1 and climbs[0].steps:
        return "reward, higher is better; band: one standard deviation of the members"
    pale = "; held-out with points, centre pale" if any(c.steps and c.valid for c in climbs) else ""
    return f"reward, higher is better{pale}"
