"""Where the time of a run went: as a table, and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.patches import Patch

from weft.report.canvas import COLOURS, FONT, INK, OTHERS, QUIET, canvas, save
from weft.report.html import Table
from weft.runs.timing import OTHER, Breakdown

KIND_COLOURS = {"one-time": COLOURS[1], "repeated": COLOURS[0], "other": OTHERS}


def times_table(found: Breakdown) -> Table:
    """Every phase and the total; what is shown adds up to it to the last digit."""
    seconds, shares = _shown(found)
    rows = [
        (phase.name, phase.kind, its, share, f"{phase.count:,}")
        if phase.name != OTHER
        else (OTHER, "", its, share, "")
        for phase, its, share in zip(found.phases, seconds, shares, strict=True)
    ]
    total = _decimal(found.total, _digits(found))
    return Table(
        ("phase", "kind", "seconds", "share", "times"),
        [*rows, ("total", "", total, _decimal(100, 1) + " %", "")],
    )


def times_note(found: Breakdown) -> str:
    """What the seconds are of, where they are not of one process and one whole run."""
    parts = []
    if found.since_step:
        parts.append(f"Nothing is known of the steps before step {found.since_step + 1:,}.")
    if found.processes > 1:
        parts.append(
            f"Of {found.processes} processes, one after the other; what one did between its last "
            "checkpoint and a kill is not known."
        )
    if found.runs > 1:
        parts.append(f"{found.runs} runs trained together: these are the seconds of all of them.")
    return " ".join(parts)


def time_breakdown(found: Breakdown, path: Path) -> None:
    """Draw a bar for every phase, longest first, in a colour for each kind."""
    names = [phase.name for phase in found.phases]
    figure, axes = canvas(7.2, 1.1 + 0.29 * len(names))
    axes.barh(
        names,
        [phase.seconds for phase in found.phases],
        color=[KIND_COLOURS[phase.kind] for phase in found.phases],
        height=0.66,
    )
    axes.invert_yaxis()
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    for row, (phase, seconds, share) in enumerate(zip(found.phases, *_shown(found), strict=True)):
        axes.annotate(
            f"{seconds} s   {share}",
            (phase.seconds, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center_baseline",
            fontsize=FONT,
            color=INK,
        )
    longest = max((phase.seconds for phase in found.phases), default=0.0)
    axes.set_xlim(0, max(longest, 1e-9) * 1.3)
    kinds = {phase.kind for phase in found.phases}
    axes.legend(
        handles=[
            Patch(color=colour, label=kind)
            for kind, colour in KIND_COLOURS.items()
            if kind in kinds
        ],
        loc="lower right",
        frameon=False,
        fontsize=FONT,
        labelcolor=INK,
    )
    total = _decimal(found.total, _digits(found))
    axes.set_title(
        f"seconds in each phase, {total} in all", loc="left", color=QUIET, fontsize=FONT, pad=10
    )
    save(figure, path)


def rounded(values: Sequence[float], digits: int) -> list[str]:
    """Decimals whose sum is the rounded sum of the values: the largest remainders go up."""
    exact = [value * 10**digits for value in values]
    whole = [int(value) for value in exact]
    missing = round(sum(exact)) - sum(whole)
    by_remainder = sorted(range(len(exact)), key=lambda index: whole[index] - exact[index])
    for index in by_remainder[:missing]:
        whole[index] += 1
    return [_decimal(value / 10**digits, digits) for value in whole]


def _shown(found: Breakdown) -> tuple[list[str], list[str]]:
    """Seconds and shares of the phases as they are written."""
    seconds = rounded([phase.seconds for phase in found.phases], _digits(found))
    return seconds, [f"{share} %" for share in rounded([100 * s for s in found.shares], 1)]


def _digits(found: Breakdown) -> int:
    return 1 if found.total >= 100 else 2 if found.total >= 10 else 3


def _decimal(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"
