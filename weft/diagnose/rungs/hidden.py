"""Rung 6: hidden states of the same prompts, from layer to layer and from position to position.

What is computed is a consequence, never a cause; where it first shows, and how it grows, says what
kind of cause to look for.

Shapes: N rows, L blocks, D hidden size, T positions, P projections.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft.diagnose.compare import noise
from weft.diagnose.compare.align import Row
from weft.diagnose.compare.divergence import relative
from weft.diagnose.compare.moments import arrays_of, together
from weft.diagnose.finding import Finding, Looked
from weft.diagnose.labels import Label
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.diagnose.words import counted

RUNG = 6

SMOOTH = 5.0
"""Noise grows by less than this from one layer to the next."""

Rows = Sequence[tuple[Row, Row]]


def look(pair: Pair) -> Looked:
    """Compare hidden states at the last real position, and sketches at every position."""
    broken = _broken(pair)
    rows = [each for part in together(pair) for each in part.same]
    kept = arrays_of(rows, lambda row: row.hidden)
    finite = [each for each in kept if np.isfinite(each[2]).all() and np.isfinite(each[3]).all()]
    if not finite:
        why = "none is finite" if kept else "no prompt with the same ids has them on both sides"
        return Looked(broken, unseen=(f"hidden states: {why}",))
    limit = noise.floor(pair, "hidden", any(part.trained for part in together(pair)))
    errors_NL = np.array([relative(a_LD, b_LD, axis=1) for _, _, a_LD, b_LD in finite])
    errors_L = errors_NL.mean(0)
    names = _names(pair.a, len(errors_L) - 1)
    curves: dict[str, Any] = {
        "layers": {"names": names, "cumulative": errors_L.tolist(), "floor": limit.value}
    }
    positions, words = _positions(rows, limit.value)
    if positions:
        curves["hidden by position"] = positions
    shape = growth(errors_L, limit.value)
    if shape is None:
        largest = f"largest {errors_L.max():.1e}, floor {limit.value:.1e}, {limit.source}"
        seen = f"{counted(len(finite), 'prompt')}, {counted(len(names), 'layer')}"
        equal = f"hidden states equal within noise: {seen} ({largest})"
        return Looked(broken, equal=(equal,), curves=curves)
    found = Finding(
        RUNG,
        "effect",
        shape.label if shape.at else _of_embeddings(rows),
        names[shape.at],
        f"hidden states part at {names[shape.at]}: {shape.words}{words}",
        value=float(errors_L[shape.at]),
        floor=limit.value,
        unit="relative L2",
    )
    return Looked((*broken, found), curves=curves)


@dataclass(frozen=True)
class Growth:
    """How the error grows with depth."""

    at: int  # the first hidden state (0: embeddings) that is apart by more than noise
    label: Label
    words: str


def growth(errors_L: np.ndarray, floor: float) -> Growth | None:
    """Read the pattern of cumulative errors [L + 1]; None if all are within the floor."""
    if errors_L.max() <= floor:
        return None
    over = np.flatnonzero(errors_L > 3 * floor)
    at = int(over[0]) if len(over) else int(np.argmax(errors_L > floor))
    here, end = float(errors_L[at]), float(errors_L[-1])
    last = len(errors_L) - 1
    before = float(errors_L[at - 1]) if at else 0.0
    sizes = f"{here:.1e} there, {end:.1e} at the last layer, floor {floor:.1e}"
    if at == 0:
        return Growth(0, "base", f"the embeddings already differ ({sizes})")
    if before > 0 and here <= SMOOTH * before:
        return Growth(at, "precision", f"it grows smoothly with depth, as rounding does ({sizes})")
    if at == last:
        return Growth(at, "implementation", f"only the last block is off ({sizes})")
    steps = np.diff(errors_L)
    if here >= errors_L.max() / 2 and steps[at:].max(initial=0) < here / 2:
        return Growth(at, "implementation", f"one block makes it, later ones carry it ({sizes})")
    return Growth(at, "unknown", f"every block from there on adds to it ({sizes})")


def _of_embeddings(rows: Rows) -> Label:
    """Positions are added to embeddings in some models; ids are equal here."""
    used = arrays_of(rows, lambda row: row.positions)
    return "positions" if any(not np.array_equal(x, y) for _, _, x, y in used) else "base"


def _positions(rows: Rows, floor: float) -> tuple[dict[str, Any], str]:
    """The mean error of the last layer by position, and from which one on it is above noise."""
    sketched = arrays_of(rows, lambda row: row.sketch)
    if not sketched:
        return {}, ""
    longest = max(a_LTP.shape[1] for _, _, a_LTP, _ in sketched)
    error_NT = np.full((len(sketched), longest), np.nan)
    for n, (_, _, a_LTP, b_LTP) in enumerate(sketched):
        error_NT[n, : a_LTP.shape[1]] = relative(a_LTP[-1], b_LTP[-1], axis=1)
    mean_T = np.nanmean(error_NT, axis=0)
    curve = {"position": list(range(longest)), "relative": mean_T.tolist(), "floor": floor}
    over = np.flatnonzero(mean_T > 3 * floor)
    if not len(over):
        return curve, "; at the last position only" if longest > 1 else ""
    return curve, f"; from position {over[0]} of {longest} on" if over[0] else "; at all positions"


def _broken(pair: Pair) -> tuple[Finding, ...]:
    """The first module of each side whose output is not finite."""
    places = {name: _nonfinite(side) for name, side in pair.sides}
    if places["A"] == places["B"]:
        return ()
    return tuple(
        Finding(
            RUNG,
            "effect",
            "overflow",
            place,
            f"in {name}, {place} is the first module whose output is not finite"
            + (f"; the largest magnitude before it is {largest:,.0f}" if largest else ""),
            value=largest,
            unit="largest magnitude",
            where=where,
        )
        for name, found in places.items()
        if found is not None
        for place, largest, where in [found]
    )


def _nonfinite(side: Evidence) -> tuple[str, float | None, str | None] | None:
    seen = next((each for each in side.passes if each.nonfinite), None)
    if seen is None or seen.nonfinite is None:
        return None
    return seen.nonfinite, max(seen.largest.values(), default=None), seen.where


def _names(side: Evidence, blocks: int) -> list[str]:
    """`embeddings`, then the modules that make the hidden states: `model.layers.0`, ..."""
    stem = next(
        (
            found.group(1)
            for each in side.weights
            for name in each.tensors
            if (found := re.match(r"(.*?)\.\d+\.", name))
        ),
        "block",
    )
    return ["embeddings", *(f"{stem}.{number}" for number in range(blocks))]
