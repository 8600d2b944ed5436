"""The course of a training: batches, rates, losses and events by step, read for comparison."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from weft.diagnose.compare import noise
from weft.diagnose.compare.align import pad_ids, rows_of
from weft.diagnose.compare.matching import Ids
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.diagnose.sides.objective import minimised
from weft.runs.evidence import Happened, Snapshot, TrainStep

GROWTH = 10.0
"""Rounding in one step is amplified by the next ones; by less than this at a time."""

MOST = {"float32": 1e-3, "float64": 1e-6}
"""Relative difference of losses that amplified rounding does not exceed; 5e-2 in 16 bits."""

Steps = Sequence[tuple[TrainStep, TrainStep]]


@dataclass(frozen=True)
class Gap:
    """How far apart two losses of one step are."""

    step: int
    value: float  # relative
    floor: float

    @property
    def over(self) -> bool:
        """Apart by more than noise."""
        return not self.value <= 3 * self.floor


def restated(pair: Pair, steps: Steps) -> float:
    """c, where every loss of B is c times that of A and yet all gradients are equal; else 1.

    What is minimised is then the same: one of the two is multiplied on its way to the gradient.
    """
    losses = [(minimised(pair.a, a), minimised(pair.b, b)) for a, b in steps]
    ratios = [y / x for x, y in losses if x and y]
    gradients = [b.grad_norm / a.grad_norm for a, b in steps if a.grad_norm and b.grad_norm]
    if not steps or not len(ratios) == len(gradients) == len(steps):
        return 1.0
    c = median(ratios)
    constant = max(abs(ratio / c - 1) for ratio in ratios) < ALIKE
    equal = max(abs(ratio - 1) for ratio in gradients) < ALIKE
    return c if constant and equal and abs(c - 1) > ALIKE else 1.0


ALIKE = 1e-3
"""Ratios of losses, or of norms of gradients, are one to this part."""


def gaps(pair: Pair, steps: Steps) -> tuple[Gap, ...]:
    """Relative differences of losses, each with its own floor: noise grows from step to step."""
    c = restated(pair, steps)
    start = noise.floor(pair, "loss").value
    most = max(MOST.get(noise.dtype_of(pair), 5e-2), start)
    found: list[Gap] = []
    floor = start
    for a, b in steps:
        x, y = minimised(pair.a, a), minimised(pair.b, b)
        if x is None or y is None or (math.isnan(x) and math.isnan(y)):
            continue
        y /= c
        gap = Gap(a.step, abs(y - x) / max(abs(x), 1e-12), floor)
        found.append(gap)
        if not gap.over:
            floor = min(max(floor, GROWTH * gap.value), most)
    return tuple(found)


def first(steps: Steps, differs: str) -> TrainStep | None:
    """The first step of B at which a field that both sides have is another one."""
    for a, b in steps:
        x, y = getattr(a, differs), getattr(b, differs)
        if x and y and x != y:
            return b
    return None


def share(steps: Steps, differs: str) -> float:
    """In what part of the steps a field is another one."""
    return sum(getattr(a, differs) != getattr(b, differs) for a, b in steps) / len(steps)


def rows_by_step(pair: Pair, side: Evidence) -> dict[int, tuple[Ids, ...]]:
    """Ids without padding that each step saw."""
    pads = pad_ids(pair)
    step_of = {index: each.step for each in side.steps for index in each.passes}
    found: dict[int, list[Ids]] = {}
    for row in rows_of(side, (each for each in side.passes if each.index in step_of), pads):
        found.setdefault(step_of[row.of.index], []).append(row.key)
    return {step: tuple(rows) for step, rows in found.items()}


def names_or_rows(pair: Pair, steps: Steps) -> tuple[Counter[object], Counter[object]] | None:
    """What was trained on, by name or by ids; None if neither is known of any step of both."""
    if all(a.rows and b.rows for a, b in steps):
        return Counter(n for a, _ in steps for n in a.rows), Counter(
            n for _, b in steps for n in b.rows
        )
    of_a, of_b = (rows_by_step(pair, side) for _, side in pair.sides)
    known = [a.step for a, _ in steps if of_a.get(a.step) and of_b.get(a.step)]
    if not known:
        return None
    return Counter(row for k in known for row in of_a[k]), Counter(
        row for k in known for row in of_b[k]
    )


def same_data(pair: Pair) -> bool:
    """Whether both sides recorded a digest of the training tokens, and it is the same."""
    prints = [side.about.get("fingerprints", {}).get("tokens.train") for _, side in pair.sides]
    return prints[0] is not None and prints[0] == prints[1]


def overlap(a: Counter[object], b: Counter[object]) -> float:
    """The part of the fewer that are in both, each counted once."""
    return len(a.keys() & b.keys()) / max(min(len(a), len(b)), 1)


MERGES = frozenset({"merge", "commit", "unmerge"})
RESETS = frozenset({"reset"})
TURNS = MERGES | RESETS
"""What ends one adapter and begins another."""


def comparable(pair: Pair) -> tuple[Snapshot, Snapshot] | None:
    """The newest adapters of one step, taken before anything was merged or reset on one side."""
    sides = []
    for side, other in ((pair.a, pair.b), (pair.b, pair.a)):
        there = {each.step for each in other.happened if each.what in TURNS}
        found: dict[int, Snapshot] = {}
        for event in side.events:
            if isinstance(event, Happened) and event.what in TURNS and event.step not in there:
                break
            if isinstance(event, Snapshot) and event.step:
                found[event.step] = event
        sides.append(found)
    steps = sides[0].keys() & sides[1].keys()
    return (sides[0][max(steps)], sides[1][max(steps)]) if steps else None


def during(side: Evidence, kinds: frozenset[str]) -> tuple[Happened, ...]:
    """Events of some kinds with training steps before and after them."""
    last = max((each.step for each in side.steps), default=0)
    return tuple(
        each
        for each in side.happened
        if each.what in kinds and each.step is not None and 0 < each.step < last
    )


def when(events: Sequence[Happened]) -> list[int]:
    """Steps after which something happened, each once."""
    return sorted({each.step for each in events if each.step is not None})


def rhythm(steps: Sequence[int]) -> str:
    """`after step 5, 10, 15 (every 5)`."""
    if not steps:
        return "never"
    shown = ", ".join(map(str, steps[:6])) + (", ..." if len(steps) > 6 else "")
    widths = {y - x for x, y in pairwise([0, *steps])}
    every = f" (every {widths.pop()})" if len(widths) == 1 and len(steps) > 1 else ""
    return f"after step {shown}{every}"


def epoch(pair: Pair, side: Evidence) -> int | None:
    """Steps of one pass over the data: after so many, the first row that was seen comes again."""
    ordered = [each.rows for each in side.steps]
    rows = list(rows_by_step(pair, side).values()) if not all(ordered) else ordered
    seen: set[object] = set()
    for number, batch in enumerate(rows):
        if seen & {*batch}:
            return number
        seen |= {*batch}
    return None


def moves(steps: Sequence[TrainStep]) -> list[int]:
    """Steps after which the digest of the base is no longer the one that was known before."""
    known = [each for each in steps if each.base]
    at_once = [each.step for each in known[:1] if each.base_before not in ("", each.base)]
    return at_once + [y.step for x, y in pairwise(known) if x.base != y.base]
