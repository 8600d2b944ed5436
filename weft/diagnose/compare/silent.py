"""Merges that nobody told of, in weights too coarse for them.

What is left of an update after rounding is little of it, and lies along it by more than chance: no
single module may show that, all of them together do.

Shapes: O out, K probes of a sketch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

CHANCE = 5.0
"""Standard deviations that what is left must lie along the update."""

ROUNDED = 4.0
"""Roundings by which a weight may differ and not be another one."""


@dataclass(frozen=True)
class Along:
    """How the base of a side without an update differs from that of the side that adds it."""

    letter: str  # of the side without
    dot: float  # of that difference and the update
    update: float  # squared norms
    apart: float
    allowed: float  # of what one rounding makes of the weights
    numbers: int

    @classmethod
    def of(
        cls,
        apart_OK: np.ndarray,
        of_a_OK: np.ndarray | None,
        of_b_OK: np.ndarray | None,
        allowed: float,
    ) -> Along | None:
        """Of sketches: B's base less A's, and what each adds beside it; None unless one does."""
        acts = [each is not None and bool(each.any()) for each in (of_a_OK, of_b_OK)]
        update = of_a_OK if acts[0] else of_b_OK
        if acts[0] == acts[1] or update is None:
            return None
        dot = float((apart_OK * update).sum()) * (1 if acts[0] else -1)
        sizes = [float((each * each).sum()) for each in (update, apart_OK)]
        return cls("B" if acts[0] else "A", dot, sizes[0], sizes[1], allowed**2, apart_OK.size)


def merged_silently(seen: Iterable[Along]) -> str:
    """The letter of the side whose bases are what rounding leaves of a merge; empty if none is."""
    found = list(seen)
    update, apart = sum(each.update for each in found), sum(each.apart for each in found)
    if len({each.letter for each in found}) != 1 or not update or not apart:
        return ""
    if apart > ROUNDED**2 * sum(each.allowed for each in found):
        return ""
    kept = sum(each.dot for each in found) / update
    left = max(apart - kept**2 * update, 0.0)
    chance = math.sqrt(left / update / sum(each.numbers for each in found))
    return found[0].letter if kept > CHANCE * chance else ""
