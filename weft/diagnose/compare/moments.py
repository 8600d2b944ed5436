"""When a pass was: before training, or after how many of its steps; and rows of the same moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from weft.diagnose.compare.align import Row, prompt_rows
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.runs.evidence import Pass, TrainStep


@dataclass(frozen=True)
class Together:
    """Prompts that both sides read at the same moment."""

    rows: tuple[tuple[Row, Row], ...]  # whatever their ids
    trained: bool  # after training steps, on both sides
    left_out: int = 0  # rows of a moment that the other side has no such row of

    @property
    def same(self) -> tuple[tuple[Row, Row], ...]:
        """Those of the same token ids, padding aside."""
        return tuple((a, b) for a, b in self.rows if a.key == b.key)


def steps_before(side: Evidence) -> Mapping[int, int]:
    """How many training steps had been taken before each pass, by its index."""
    found: dict[int, int] = {}
    taken = 0
    for event in side.events:
        if isinstance(event, TrainStep):
            taken = event.step
        elif isinstance(event, Pass):
            found[event.index] = taken
    return found


@lru_cache(maxsize=4)
def together(pair: Pair) -> tuple[Together, ...]:
    """Matched rows before training and after it; empty ones are left out.

    Rows after different numbers of steps are compared only where both are of the end of training:
    whether the runs are equally long is for the trajectory to say.
    """
    a, b = steps_before(pair.a), steps_before(pair.b)
    last = max(a.values(), default=0), max(b.values(), default=0)
    kept: dict[bool, list[tuple[Row, Row]]] = {False: [], True: []}
    left = 0
    for row_a, row_b in prompt_rows(pair).pairs:
        moments = a[row_a.of.index], b[row_b.of.index]
        if moments[0] == moments[1] or moments == last:
            kept[min(moments) > 0].append((row_a, row_b))
        else:
            left += 1
    return tuple(
        Together(tuple(rows), trained, left) for trained, rows in kept.items() if rows or left
    )


def arrays_of(
    rows: Iterable[tuple[Row, Row]], read: Callable[[Row], np.ndarray | None]
) -> list[tuple[Row, Row, np.ndarray, np.ndarray]]:
    """Rows of which both sides have an array, in one shape: with both arrays."""
    read_rows = ((a, b, read(a), read(b)) for a, b in rows)
    return [
        (a, b, x, y)
        for a, b, x, y in read_rows
        if x is not None and y is not None and x.shape == y.shape
    ]
