"""Scoring by several ranks: each takes its share of the examples, and sums go round.

Shapes: L lanes, M members of a lane, P parameters, N members of a bank, E examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from weft.core.batch import Batch
from weft.core.keys import Key
from weft.engines.engine import Scores
from weft.engines.local import LocalEngine
from weft.engines.ranks import ALONE, Ranks
from weft.engines.scorer import LocalScorer
from weft.methods.estimate import Graded, Gradient
from weft.methods.population import Population
from weft.model.bank import Bank
from weft.model.objectives import TOKENS, Objective
from weft.runs.timing import Stopwatch


@dataclass(frozen=True, eq=False)
class ParallelScorer:
    """A scorer whose examples are divided among ranks, `own` being this rank's.

    What comes out is what `own` alone gives on all examples, but for the rounding of sums.
    """

    own: LocalScorer
    ranks: Ranks

    @property
    def clock(self) -> Stopwatch:
        """That of this rank."""
        return self.own.clock

    @property
    def rounding(self) -> float:
        """Relative rounding of one number in the base's dtype."""
        return self.own.rounding

    def losses(self, theta_LMP: torch.Tensor, batches: Sequence[Batch]) -> np.ndarray:
        """The mean loss [L, M] of every member on its lane's batch: L x M numbers go round."""
        sum_LM = self.own.loss_sums(theta_LMP, self._shares(batches))
        with self.clock("communication"):
            sum_LM = self.ranks.sums(sum_LM)
        return sum_LM / self.own.counts(batches)[:, None]

    def gradient(
        self, theta_LP: torch.Tensor, batches: Sequence[Batch], keys: Sequence[Key]
    ) -> Gradient:
        """The gradient of each lane's mean loss over its batch: L x (P + 1) numbers go round."""
        own = self.own.gradient_sums(theta_LP, self._shares(batches), keys)
        with self.clock("communication"):
            gradient_LP = self.ranks.sum(own.gradient_LP)
            loss_L = self.ranks.sums(np.array(own.loss_L))
        return Gradient(gradient_LP, tuple(loss_L.tolist())).over(self.own.counts(batches))

    def rewards(self, lane: int, population: Population, batch: Batch, key: Key) -> Graded:
        """A population of a lane, and its centre in the last row: all ranks grade all of it."""
        return self.own.rewards(lane, population, batch, key)

    def _shares(self, batches: Sequence[Batch]) -> list[Batch]:
        return [Batch(tuple(b.examples[i] for i in self.ranks.share(sizes(b)))) for b in batches]


@dataclass(frozen=True, eq=False)
class ParallelEngine(LocalEngine):
    """An engine whose examples are divided among ranks. Each of them generates everything."""

    ranks: Ranks = ALONE

    def score(self, bank: Bank, batch: Batch, objective: Objective = TOKENS) -> Scores:
        """Every member on every example, without dropout: each score is that of one rank."""
        own_E = self.ranks.share(sizes(batch))
        score_2NE = np.zeros((2, len(bank.members), len(batch.examples)))
        if own_E:
            found = super().score(bank, Batch(tuple(batch.examples[i] for i in own_E)), objective)
            score_2NE[:, :, own_E] = found.loss_NE, found.correct_NE
        loss_NE, correct_NE = self.ranks.sums(score_2NE)
        return Scores(loss_NE, correct_NE.astype(np.int64), objective.counts(batch))


def sizes(batch: Batch) -> list[int]:
    """What each example costs."""
    return [example.tokens for example in batch.examples]
