"""What is minimised: how one forward becomes a loss of every example under every member.

Shapes: N members, E examples of a block, C cells: all (member, example) pairs of a forward, block
by block, in a block member by member, examples fastest. S targets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from weft.core.batch import Batch
from weft.model.base import Base
from weft.model.forward import make_rows, target_nll, target_scores
from weft.model.rows import Block, Targets
from weft.model.weaving import Weft


@dataclass(frozen=True, eq=False)
class Cells:
    """Loss sums (float64, differentiable with respect to the bank) and hits of one forward."""

    loss_C: torch.Tensor
    correct_C: torch.Tensor


class Objective(Protocol):
    """How rows are read, and what their losses are."""

    @property
    def name(self) -> str:
        """What the loss is called."""
        ...

    def counts(self, batch: Batch) -> np.ndarray:
        """What each example's loss sum and hits are divided by, [E]."""
        ...

    def rows(self, batch: Batch) -> Batch:
        """The sequences that a forward reads for a batch."""
        ...

    def cells(self, base: Base, weft: Weft, blocks: Sequence[Block]) -> Cells:
        """One forward."""
        ...


@dataclass(frozen=True)
class TokenNLL:
    """Negative log-likelihood of the supervised tokens."""

    name: str = "nll"

    def counts(self, batch: Batch) -> np.ndarray:
        """Supervised tokens."""
        return np.array([example.supervised for example in batch.examples])

    def rows(self, batch: Batch) -> Batch:
        """The examples as they are."""
        return batch

    def cells(self, base: Base, weft: Weft, blocks: Sequence[Block]) -> Cells:
        """Summed over the tokens of each example; hits are tokens that are the most likely one."""
        rows = make_rows(base, blocks)
        if torch.is_grad_enabled():
            nll_S = target_nll(base, weft, rows)
            return Cells(_summed(nll_S, rows.targets), torch.zeros(0, dtype=torch.int64))
        nll_S, correct_S = target_scores(base, weft, rows)
        return Cells(_summed(nll_S, rows.targets), _summed(correct_S, rows.targets).long())


TOKENS = TokenNLL()


def _summed(values_S: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Sums over the targets of each cell, [C] float64."""
    sums_C = torch.zeros(targets.cells, dtype=torch.float64, device=values_S.device)
    return sums_C.index_add(0, targets.cell_S, values_S.double())
