"""Which of several exchanges close a gap, and which are needed for it.

Shapes: none; a distance is one number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from weft.diagnose.finding import Confidence
from weft.diagnose.proof.replica import Replica
from weft.diagnose.proof.swaps import SWAPS

Distance = Callable[[Replica], float]
"""How far a replica is from A."""

SPECIFIC = (
    "scale", "init", "normaliser", "labels", "mask", "positions", "schedule", "order", "trainable",
    "optimiser", "context", "mode", "dtype", "prompt", "ids", "attach", "adapter", "tied",
    "base",
)  # fmt: skip
"""Of exchanges that close the same gap, the one that exchanges least is the cause."""

ENOUGH = 0.95
"""Share of a gap that counts as all of it, of which the reference says so."""

NOTABLE = 0.05
"""Share of a gap below which an exchange has not closed anything."""


@dataclass(frozen=True)
class Trial:
    """One factor that may be exchanged."""

    factor: str
    places: tuple[str, ...] = ()
    step: int | None = None
    cause: int | None = None  # of the diagnosis; None: nobody suspected it

    def swap(self, to: Replica, other: Replica) -> Replica:
        """`to` with the factor of `other`."""
        return SWAPS[self.factor](to, other, self.places, self.step)

    @property
    def name(self) -> str:
        """What is exchanged, in words."""
        return ", ".join(self.places) if self.factor == "settings" else self.factor

    @property
    def rank(self) -> int:
        """Lower for what exchanges less."""
        return SPECIFIC.index(self.factor) if self.factor in SPECIFIC else len(SPECIFIC)


@dataclass(frozen=True)
class Shown:
    """What exchanging a factor did."""

    trial: Trial
    alone: float  # D(A, B with A's factor)
    opens: float  # D(A, A with B's factor)
    without: float | None = None  # D with all accepted factors but this one
    took: float = 0.0  # by how much it lowered the distance when it was accepted


@dataclass(frozen=True)
class Solved:
    """The gap, what closes it, and what is left."""

    gap: float
    left: float
    floor: float
    accepted: tuple[Shown, ...] = ()
    others: tuple[Shown, ...] = ()
    mended: Replica | None = field(default=None, compare=False)  # B with all that was accepted

    @property
    def closed(self) -> bool:
        """Whether what is left is noise."""
        return self.left <= 3 * self.floor

    def confidence(self, shown: Shown) -> Confidence:
        """Proven in both directions, supported in one."""
        opens = shown.opens > 3 * self.floor
        enough = self.closed or (self.gap - self.left) >= ENOUGH * self.gap
        needed = shown.without is not None and shown.without > max(
            3 * self.floor, 3 * self.left if not self.closed else 0.0
        )
        closes = shown in self.accepted and enough and needed
        if closes and opens:
            return "proven"
        if closes or (opens and shown.took > NOTABLE * self.gap):
            return "supported"
        return "located"


def solve(
    a: Replica,
    b: Replica,
    trials: Sequence[Trial],
    distance: Distance,
    floor: float,
    told: Callable[[str], None] = lambda words: None,
) -> Solved:
    """Exchange factors one by one until B is A within noise, then leave out what is not needed."""
    gap = distance(b)
    if gap <= floor:
        return Solved(gap, gap, floor, mended=b)
    live = [each for each in trials if each.swap(b, a) is not b]
    shown = {}
    for each in live:
        told(f"exchanging {each.name}")
        shown[each] = Shown(each, distance(each.swap(b, a)), distance(each.swap(a, b)))
    chosen, left = _greedy(a, b, live, shown, distance, floor, gap)
    if left > 3 * floor and len(live) > 1:
        everything = distance(_applied(live, a, b))
        if everything <= 3 * floor or everything < left * (1 - NOTABLE):
            chosen, left = list(live), everything
    chosen, left = _needed(a, b, chosen, distance, floor, left)
    accepted, before, mended = [], gap, b
    for n, each in enumerate(chosen):
        mended = each.swap(mended, a)
        after = shown[each].alone if n == 0 else left if n == len(chosen) - 1 else distance(mended)
        rest = [other for other in chosen if other is not each]
        without = gap if not rest else distance(_applied(rest, a, b))
        accepted.append(replace(shown[each], without=without, took=before - after))
        before = after
    others = tuple(shown[each] for each in live if each not in chosen)
    return Solved(gap, left, floor, tuple(accepted), others, mended)


def _greedy(
    a: Replica,
    b: Replica,
    live: Sequence[Trial],
    shown: dict[Trial, Shown],
    distance: Distance,
    floor: float,
    gap: float,
) -> tuple[list[Trial], float]:
    chosen: list[Trial] = []
    current, left = b, gap
    while left > 3 * floor:
        rest = [each for each in live if each not in chosen]
        found = []
        for each in rest:
            made = each.swap(current, a)
            if made is not current:
                after = distance(made) if chosen else shown[each].alone
                found.append((0.0 if after <= 3 * floor else after, each.rank, each, made, after))
        if not found:
            break
        least = min(after for after, *_ in found)
        near = [each for each in found if each[0] <= max(least * 1.01, least + floor)]
        _, _, best, made, after = min(near, key=lambda each: (each[1], live.index(each[2])))
        if after > left * (1 - NOTABLE):
            break
        chosen.append(best)
        current, left = made, after
    return chosen, left


def _needed(
    a: Replica,
    b: Replica,
    chosen: list[Trial],
    distance: Distance,
    floor: float,
    left: float,
) -> tuple[list[Trial], float]:
    """Without those whose leaving out changes nothing (the last step of ddmin), widest first."""
    for each in sorted(chosen, key=lambda trial: -trial.rank):
        if len(chosen) < 2:
            break
        rest = [other for other in chosen if other is not each]
        after = distance(_applied(rest, a, b))
        if after <= max(3 * floor, left):
            chosen, left = rest, after
    return chosen, left


def _applied(trials: Sequence[Trial], a: Replica, b: Replica) -> Replica:
    for each in trials:
        b = each.swap(b, a)
    return b
