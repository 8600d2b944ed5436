"""Who grades a population: here, one engine after the other span of members.

Shapes: N members, E prompts, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from weft.core.batch import Batch, even_spans
from weft.core.keys import Key
from weft.engines.engine import Engine
from weft.engines.reward import Reward, graded
from weft.methods.estimate import Graded
from weft.methods.population import Population
from weft.model.adapter import Layout
from weft.model.bank import Bank
from weft.model.config import DType
from weft.model.objectives import Objective
from weft.runs.timing import Stopwatch

BANK_BYTES = 2**30
"""Memory for the adapters that are there at once."""


@dataclass(frozen=True, eq=False)
class Generation:
    """What is to be graded: a population and its centre on a batch, over what the lane committed.

    `key` draws the completions, for all members alike.
    """

    population: Population
    stack: Bank | None  # of one member
    batch: Batch
    key: Key

    @property
    def members(self) -> int:
        """How many there are, the centre included: it is the last."""
        return self.population.size + 1


@dataclass(frozen=True, eq=False)
class Work:
    """What whoever grades has to know of a run: plain values."""

    base: str
    dtype: DType
    device: str
    layout: Layout
    objective: Objective | Reward
    members: int | None = None  # at most so many at once
    rows_per_forward: int | None = None


class Crew(Protocol):
    """Whoever grades generations."""

    def rewards(self, generation: Generation, clock: Stopwatch) -> Graded:
        """Every member in order, and the centre in the last row."""
        ...

    def close(self) -> None:
        """Let go of what it holds beside this process."""
        ...


def at_once(layout: Layout, most: int | None) -> int:
    """How many adapters are made at once: at most `most`, and what fits into `BANK_BYTES`.

    Whoever cuts a population so, and evenly, computes the same forwards.
    """
    fits = max(1, BANK_BYTES // (4 * layout.size))
    return fits if most is None else min(fits, most)


@dataclass(frozen=True, eq=False)
class Alone:
    """One engine that grades everything itself, at most `members` (None: all) at once."""

    engine: Engine
    layout: Layout
    objective: Objective | Reward
    members: int | None = None

    def rewards(self, generation: Generation, clock: Stopwatch) -> Graded:
        """Span by span."""
        most = at_once(self.layout, self.members)
        return Graded.together(
            [
                self.span(generation, start, stop, clock)
                for start, stop in even_spans(generation.members, most)
            ]
        )

    def close(self) -> None:
        """The engine is somebody else's."""

    def span(self, generation: Generation, start: int, stop: int, clock: Stopwatch) -> Graded:
        """Members start..stop-1."""
        numbers = range(start, stop)
        with clock("creating adapters"):
            flat_NP = generation.population.members(numbers)
            bank = Bank.from_flat(tuple(map(str, numbers)), self.layout, flat_NP)
            if generation.stack is not None:
                bank = bank.over(generation.stack.only([0] * len(numbers)))
        return graded(self.engine, bank, generation.batch, self.objective, generation.key, clock)
