"""Figures of many cases: shares with intervals, and the table of the page.

An interval is Wilson's, at 95 %; cases of one type are alike, so the second one draws types, not
cases, with replacement.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence

from tests.faults.suite.score import CLOSED, Judged

Value = float | None
Z = 1.959964


def wilson(hits: float, count: int) -> tuple[float, float]:
    """A 95 % interval of a share."""
    if not count:
        return (0.0, 1.0)
    p, n = hits / count, count
    middle = p + Z * Z / (2 * n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    whole = 1 + Z * Z / n
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def by_type(cases: Sequence[tuple[str, float]], draws: int = 2000) -> tuple[float, float]:
    """A 95 % interval of the mean, from draws of types."""
    groups: dict[str, list[float]] = {}
    for name, value in cases:
        groups.setdefault(name, []).append(value)
    names, rng = sorted(groups), random.Random(0)
    means = []
    for _ in range(draws):
        drawn = [v for name in rng.choices(names, k=len(names)) for v in groups[name]]
        means.append(statistics.fmean(drawn))
    means.sort()
    return means[int(0.025 * draws)], means[int(0.975 * draws)]


def _single(pick: Callable[[Judged], Value]) -> Callable[[Judged], Value]:
    return lambda j: pick(j) if j.kind == "single" else None


MEASURES: dict[str, Callable[[Judged], Value]] = {
    "detection": lambda j: j.detected if j.kind in ("single", "double") else None,
    "false alarms, benign": lambda j: j.detected if j.kind == "benign" else None,
    "false alarms, cancelling": lambda j: j.detected if j.kind == "cancel" else None,
    "cause first, single faults": _single(lambda j: j.top1),
    "cause among three, single": _single(lambda j: j.top3),
    "rung": _single(lambda j: j.rung),
    "place": _single(lambda j: j.place),
    "step": _single(lambda j: j.step),
    "both causes, double faults": lambda j: (j.found == 1) if j.kind == "double" else None,
    "one of both, double faults": lambda j: (j.found or 0) > 0 if j.kind == "double" else None,
    "abstained or no answer": lambda j: j.verdict in ("unsure", "none"),
}


def values(judged: Sequence[Judged], measure: str) -> list[tuple[str, float]]:
    """(type, value) of each case that the measure is about."""
    found = []
    for each in judged:
        value = MEASURES[measure](each)
        if value is not None:
            found.append(("+".join(each.faults) or each.case, float(value)))
    return found


def proven(judged: Sequence[Judged]) -> tuple[int, int, int]:
    """Causes called proven, those of them that are right, and those whose gap closes."""
    said = [each for one in judged for each in one.proven]
    closed = sum((gap or 0) >= CLOSED for _, _, gap in said)
    return len(said), sum(right for _, right, _ in said), closed


def cell(judged: Sequence[Judged], measure: str, *, full: bool) -> str:
    found = values(judged, measure)
    if not found:
        return "-"
    total = sum(value for _, value in found)
    text = f"{total / len(found):.2f}"
    if not full:
        return text
    low, high = wilson(total, len(found))
    return f"{text} ({low:.2f}-{high:.2f}, n {len(found)})"


def rows(
    parts: dict[str, dict[str, list[Judged]]], systems: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows; `parts` maps a part (development, held out) to each system's answers."""
    columns = [(part, "weft diff") for part in parts]
    everything = {s: [j for part in parts.values() for j in part[s]] for s in systems}
    header = ["", *(f"weft diff, {part}" for part, _ in columns)]
    header += ["weft diff, all", *systems[1:]]
    body = []
    for measure in MEASURES:
        line = [measure]
        line += [cell(parts[part][system], measure, full=True) for part, system in columns]
        line.append(cell(everything["weft diff"], measure, full=True))
        line += [cell(everything[system], measure, full=False) for system in systems[1:]]
        body.append(line)
    groups = [*(parts[part]["weft diff"] for part in parts), everything["weft diff"]]
    blanks = ["-"] * (len(systems) - 1)
    counts = [proven(group) for group in groups]
    body.append(["proven and right", *(f"{r} of {n}" for n, r, _ in counts), *blanks])
    body.append(["proven and gap closed", *(f"{c} of {n}" for n, _, c in counts), *blanks])
    for what, pick in (
        ("processor seconds, median", lambda g: _median([j.seconds for j in g])),
        ("with --prove, median", lambda g: _median([j.prove_seconds for j in g])),
        ("with --prove, longest", lambda g: _longest([j.prove_seconds for j in g])),
    ):
        body.append([what, *(pick(group) for group in groups), *blanks])
    return header, body


def _median(seconds: Sequence[float | None]) -> str:
    known = [x for x in seconds if x is not None]
    return f"{statistics.median(known):.1f}" if known else "-"


def _longest(seconds: Sequence[float | None]) -> str:
    known = [x for x in seconds if x is not None]
    return f"{max(known):.1f}" if known else "-"


def aligned(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """For a terminal."""
    widths = [max(len(row[i]) for row in (header, *body)) for i in range(len(header))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in (header, *body)
    ]
    return "\n".join(lines)


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """For the page."""
    lines = [f"| {' | '.join(header)} |", f"|---|{'---:|' * (len(header) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in body]
    return "\n".join(lines)


def by_fault(judged: Sequence[Judged]) -> tuple[list[str], list[list[str]]]:
    """One row a type: how often it was detected, and named first."""
    groups: dict[str, list[Judged]] = {}
    for each in judged:
        if each.kind == "single":
            groups.setdefault(each.faults[0], []).append(each)
    body = []
    for name in sorted(groups):
        group = groups[name]
        missed = sorted({j.said[0] if j.said else j.verdict for j in group if not j.top1})
        body.append(
            [
                name,
                str(len(group)),
                f"{sum(j.detected for j in group) / len(group):.2f}",
                f"{sum(bool(j.top1) for j in group) / len(group):.2f}",
                f"{sum(bool(j.rung) for j in group) / len(group):.2f}",
                ", ".join(missed) or "-",
            ]
        )
    return ["type", "cases", "detected", "named first", "rung", "said instead"], body
