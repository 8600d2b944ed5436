"""What is minimised: how one forward becomes a loss of every example under every member.

Shapes: N members, E examples and R rows of a block, K candidates of an example, S targets and
C cells of a forward (all its (member, example) pairs: block by block, in a block member by member,
examples fastest), U tokens that are candidates somewhere in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from weft.core.batch import Batch, Choice, Example
from weft.core.errors import InputError
from weft.model.base import Base
from weft.model.forward import make_rows, target_nll, target_scores, token_logits
from weft.model.nats import note_nats
from weft.model.rows import Block, Targets
from weft.model.weaving import Weft

Hits = Literal["token_accuracy", "choice"]
"""What hits count: tokens that are the most likely one, or rows whose right candidate wins."""


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

    @property
    def hits(self) -> Hits:
        """The metric that hits over counts are."""
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

    def token_rows(self, batch: Batch) -> Batch:
        """The sequences whose token losses are enough, for an engine that computes no others."""
        ...

    def of_tokens(
        self, batch: Batch, loss_NR: torch.Tensor, correct_NR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss sums and hits, [N, E], from those over the supervised tokens of `token_rows`."""
        ...


class _OfTokens:
    """An objective whose forward gives token losses and nothing else."""

    def token_rows(self, batch: Batch) -> Batch:
        """The examples as they are."""
        return batch

    def rows(self, batch: Batch) -> Batch:
        """The rows whose tokens are scored."""
        return self.token_rows(batch)

    def of_tokens(
        self, batch: Batch, loss_NR: torch.Tensor, correct_NR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same: a row is an example."""
        return loss_NR, correct_NR

    def cells(self, base: Base, weft: Weft, blocks: Sequence[Block]) -> Cells:
        """Where a gradient is asked for, tokens' hits are not: they are 0."""
        rows = make_rows(base, _read(blocks, self.rows))
        if torch.is_grad_enabled():
            loss_R = _summed(target_nll(base, weft, rows), rows.targets)
            correct_R = torch.zeros_like(loss_R, dtype=torch.int64)
        else:
            nll_S, correct_S = target_scores(base, weft, rows)
            loss_R = _summed(nll_S, rows.targets)
            correct_R = _summed(correct_S, rows.targets).long()
        note_nats(rows.blocks, loss_R)
        losses, hits = _by_block(loss_R, rows.blocks), _by_block(correct_R, rows.blocks)
        return _cells(
            self.of_tokens(block.batch, loss_NR, correct_NR)
            for block, loss_NR, correct_NR in zip(blocks, losses, hits, strict=True)
        )


@dataclass(frozen=True)
class TokenNLL(_OfTokens):
    """Negative log-likelihood of the supervised tokens; no hits where a gradient is asked for."""

    name: str = "nll"
    hits: Hits = "token_accuracy"

    def counts(self, batch: Batch) -> np.ndarray:
        """Supervised tokens."""
        return np.array([example.supervised for example in batch.examples])


@dataclass(frozen=True)
class OptionNLL(_OfTokens):
    """Negative log-likelihood of the right candidate's tokens, and of nothing after them."""

    name: str = "option_nll"
    hits: Hits = "token_accuracy"

    def counts(self, batch: Batch) -> np.ndarray:
        """Tokens of the right candidate."""
        return np.array([len(c.candidates[c.right]) for c in map(_choice, batch.examples)])

    def token_rows(self, batch: Batch) -> Batch:
        """Each prompt with its right candidate."""
        return Batch(tuple(map(_answered, batch.examples)))


@dataclass(frozen=True)
class MeanChoice(_OfTokens):
    """Cross-entropy over the candidates, by the mean log-probability of each one's tokens.

    Of single tokens it is `OneTokenChoice`, with a row for every candidate instead of one.
    """

    name: str = "choice_mean"
    hits: Hits = "choice"

    def counts(self, batch: Batch) -> np.ndarray:
        """1 each."""
        return np.ones(len(batch.examples), dtype=np.int64)

    def token_rows(self, batch: Batch) -> Batch:
        """Each prompt with each of its candidates, candidates fastest."""
        choices = [(example.id, _choice(example)) for example in batch.examples]
        return Batch(tuple(c.row(id, k) for id, c in choices for k in range(len(c.candidates))))

    def of_tokens(
        self, batch: Batch, loss_NR: torch.Tensor, correct_NR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens' hits are not asked: the losses say which candidate wins."""
        choices = [_choice(example) for example in batch.examples]
        sizes = [len(choice.candidates) for choice in choices]
        lengths = [len(ids) for choice in choices for ids in choice.candidates]
        score_NR = -loss_NR / torch.tensor(lengths, device=loss_NR.device)
        firsts = np.cumsum([0, *sizes[:-1]]).tolist()
        index_EK = _table([range(at, at + k) for at, k in zip(firsts, sizes, strict=True)])
        return _decided(score_NR[:, index_EK.to(score_NR.device)], choices)


@dataclass(frozen=True)
class OneTokenChoice:
    """Cross-entropy over candidates of one token each, at the one position after the prompt.

    A row for each prompt is read, and of the output head the candidates' rows only.
    """

    name: str = "choice"
    hits: Hits = "choice"

    def counts(self, batch: Batch) -> np.ndarray:
        """1 each."""
        return np.ones(len(batch.examples), dtype=np.int64)

    def rows(self, batch: Batch) -> Batch:
        """Each prompt with its right candidate, which is not read."""
        return Batch(tuple(map(_answered, batch.examples)))

    def cells(self, base: Base, weft: Weft, blocks: Sequence[Block]) -> Cells:
        """One target for each cell."""
        choices = [[_single(example) for example in block.batch.examples] for block in blocks]
        tokens = sorted({ids[0] for part in choices for c in part for ids in c.candidates})
        place = {token: u for u, token in enumerate(tokens)}
        rows = make_rows(base, _read(blocks, self.rows))
        token_U = torch.tensor(tokens, device=base.device)
        logits_SU = token_logits(base, weft, rows, token_U).double()
        logits_CU = logits_SU[rows.targets.cell_S.argsort()]
        found = []
        for part, logits_NEU in zip(choices, _by_block(logits_CU, rows.blocks), strict=True):
            index_EK = _table([[place[ids[0]] for ids in c.candidates] for c in part])
            index_NEK = index_EK.to(base.device).expand(len(logits_NEU), -1, -1)
            found.append(_decided(logits_NEU.gather(2, index_NEK), part))
        return _cells(found)

    def token_rows(self, batch: Batch) -> Batch:
        """As the mean of one token, from a row for every candidate."""
        return MEANS.token_rows(batch)

    def of_tokens(
        self, batch: Batch, loss_NR: torch.Tensor, correct_NR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As the mean of one token: what all tokens share cancels."""
        return MEANS.of_tokens(batch, loss_NR, correct_NR)


TOKENS = TokenNLL()
OPTION = OptionNLL()
MEANS = MeanChoice()
ONE_TOKEN = OneTokenChoice()


def choosing(examples: Iterable[Example]) -> Objective:
    """The choice between candidates: at one position where every candidate is a single token."""
    return ONE_TOKEN if all(_choice(example).single for example in examples) else MEANS


def _choice(example: Example) -> Choice:
    if example.choice is None:
        raise InputError(f"{example.id} has no candidates to choose between")
    return example.choice


def _answered(example: Example) -> Example:
    """The prompt with its right candidate."""
    choice = _choice(example)
    return choice.row(example.id, choice.right)


def _single(example: Example) -> Choice:
    choice = _choice(example)
    if not choice.single:
        raise InputError(f"{example.id} has a candidate of several tokens")
    return choice


def _read(blocks: Sequence[Block], rows: Callable[[Batch], Batch]) -> list[Block]:
    """The blocks with the sequences that are read instead of their examples."""
    return [Block(block.start, block.stop, rows(block.batch)) for block in blocks]


def _by_block(values_C: torch.Tensor, blocks: Sequence[Block]) -> list[torch.Tensor]:
    """Values of all cells, [C, ...], as [N, E, ...] of each block."""
    sizes = [block.members * len(block.batch.examples) for block in blocks]
    parts = zip(values_C.split(sizes), blocks, strict=True)
    return [part.unflatten(0, (block.members, -1)) for part, block in parts]


def _cells(found: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Cells:
    """Losses and hits [N, E] of each block as those of all cells."""
    losses, hits = zip(*found, strict=True)
    return Cells(*(torch.cat([part.flatten() for part in parts]) for parts in (losses, hits)))


def _table(indices: Sequence[Sequence[int]]) -> torch.Tensor:
    """Rows of indices as [E, K]; shorter ones are filled up with 0."""
    width = max(map(len, indices))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in indices])


def _decided(
    score_NEK: torch.Tensor, choices: Sequence[Choice]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy over each example's candidates, and whether the right one wins, [N, E]."""
    device = score_NEK.device
    size_E = torch.tensor([len(choice.candidates) for choice in choices], device=device)
    right_E = torch.tensor([choice.right for choice in choices], device=device)
    missing_EK = torch.arange(score_NEK.shape[2], device=device) >= size_E[:, None]
    score_NEK = score_NEK.masked_fill(missing_EK, -torch.inf)
    right_NE1 = right_E[:, None].expand(len(score_NEK), -1, -1)
    loss_NE = score_NEK.logsumexp(2) - score_NEK.gather(2, right_NE1).squeeze(2)
    return loss_NE, (score_NEK.argmax(2) == right_E).long()


def _summed(values_S: torch.Tensor, targets: Targets) -> torch.Tensor:
    """Sums over the targets of each cell, [C] float64."""
    sums_C = torch.zeros(targets.cells, dtype=torch.float64, device=values_S.device)
    return sums_C.index_add(0, targets.cell_S, values_S.double())
