"""Who grades a population: here, one engine after the other span of members.

Shapes: N members, E prompts, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from weft.core.batch import Batch, spans
from weft.core.keys import Key
from weft.engines.engine import Engine
from weft.engines.reward import Reward, graded
from weft.methods.estimate import Graded
from weft.methods.population import Population
from weft.model.adapter import Layout
from weft.model.bank import Bank
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


class Crew(Protocol):
    """Whoever grades generations."""

    def rewards(self, generation: Generation, clock: Stopwatch) -> Graded:
        """Every member in order, and the centre in the last row."""
        ...


@dataclass(frozen=True, eq=False)
class Alone:
    """One engine that grades everything itself."""

    engine: Engine
    layout: Layout
    objective: Objective | Reward

    def rewards(self, generation: Generation, clock: Stopwatch) -> Graded:
        """Span by span, so that no more adapters are held than fit into `BANK_BYTES`."""
        at_once = max(1, BANK_BYTES // (4 * self.layout.size))
        return Graded.together(
            [
                self.span(generation, start, stop, clock)
                for start, stop in spans(generation.members, at_once)
            ]
        )

    def span(self, generation: Generation, start: int, stop: int, clock: Stopwatch) -> Graded:
        """Members start..stop-1."""
        numbers = range(start, stop)
        with clock("creating adapters"):
            flat_NP = generation.population.members(numbers)
            bank = Bank.from_flat(tuple(map(str, numbers)), self.layout, flat_NP)
            if generation.stack is not None:
                bank = bank.over(generation.stack.only([0] * len(numbers)))
        return graded(self.engine, bank, generation.batch, self.objective, generation.key, clock)
