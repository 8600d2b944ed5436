"""What a method needs: losses and gradients from this process, rewards from whoever grades.

Shapes: L lanes (adapters that train together), M members of a lane, P parameters, E examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import torch

from weft.core.batch import Batch, even_spans
from weft.core.keys import Key
from weft.engines.forwards import members_at_once
from weft.engines.population import Crew, Generation
from weft.methods.estimate import Graded, Gradient
from weft.methods.population import Population
from weft.model.adapter import Layout
from weft.model.bank import Bank
from weft.model.base import Base
from weft.model.noise import global_generator
from weft.model.objectives import TOKENS, Objective
from weft.model.rows import Block
from weft.model.trunk import Trunk
from weft.model.weaving import Dropout, Weft
from weft.runs.timing import Stopwatch


@dataclass(frozen=True, eq=False)
class LocalScorer:
    """Adapters of one layout over one base, each lane on the stack that it has built so far.

    `members_per_forward` and `rows_per_forward` bound the memory of one forward; they change no
    result beyond rounding. Where they are not given, `members_at_once` says how many members share
    a forward. `stacks` has one adapter for each lane; `trunk` reads what lies below
    all adapters, but where the base's own dropout is on.
    """

    base: Base
    layout: Layout
    objective: Objective = TOKENS
    stacks: Bank | None = None
    dropout: float = 0.0
    base_dropout: bool = False
    members_per_forward: int | None = None
    rows_per_forward: int | None = None
    trunk: Trunk | None = None
    clock: Stopwatch = field(default_factory=Stopwatch)
    crew: Crew | None = None

    @property
    def rounding(self) -> float:
        """Relative rounding of one number in the base's dtype."""
        return torch.finfo(self.base.model.dtype).eps

    def losses(self, theta_LMP: torch.Tensor, batches: Sequence[Batch]) -> np.ndarray:
        """The mean loss [L, M] of every member on its lane's batch: no graph, no dropout.

        The sum over all rows is divided once, so splitting a batch changes nothing but rounding.
        """
        return self.loss_sums(theta_LMP, batches) / self.counts(batches)[:, None]

    def loss_sums(self, theta_LMP: torch.Tensor, batches: Sequence[Batch]) -> np.ndarray:
        """The same before they are divided by `counts`; a batch without rows adds nothing."""
        lanes, members = theta_LMP.shape[:2]
        names = tuple(map(str, range(lanes * members)))
        with self.clock("loading"):
            bank = Bank.from_flat(names, self.layout, theta_LMP.detach().flatten(0, 1))
        loss_LM = np.zeros((lanes, members))
        for micro in self._micro(batches):
            for start, stop in even_spans(lanes * members, self._at_once(micro)):
                pieces = [
                    (lane, max(start, lane * members), min(stop, (lane + 1) * members))
                    for lane in range(start // members, -(-stop // members))
                    if micro[lane] is not None
                ]
                if not pieces:
                    continue
                blocks = [Block(low, high, micro[lane]) for lane, low, high in pieces]
                weft = Weft(bank, self._stacks([lane for lane, _, _ in pieces]), trunk=self.trunk)
                with self.clock("evaluation"), torch.no_grad():
                    loss_C = self.objective.cells(self.base, weft, blocks).loss_C.cpu().numpy()
                for lane, low, high in pieces:
                    loss_ME, loss_C = np.split(loss_C, [(high - low) * len(micro[lane].examples)])
                    here = slice(low - lane * members, high - lane * members)
                    loss_LM[lane, here] += loss_ME.reshape(high - low, -1).sum(axis=1)
        return loss_LM

    def gradient(
        self, theta_LP: torch.Tensor, batches: Sequence[Batch], keys: Sequence[Key]
    ) -> Gradient:
        """The gradient of each lane's mean loss over its batch.

        The denominator is that of the whole batch and dropout's noise is an example's own, so
        splitting a batch into several forwards changes nothing but the rounding. (The base's own
        dropout, if it is on, draws its noise anew for each forward.)
        """
        return self.gradient_sums(theta_LP, batches, keys).over(self.counts(batches))

    def gradient_sums(
        self, theta_LP: torch.Tensor, batches: Sequence[Batch], keys: Sequence[Key]
    ) -> Gradient:
        """The same of sums, not yet divided by `counts`; a batch without rows adds nothing."""
        theta_LP = theta_LP.detach().requires_grad_()
        lanes = len(batches)
        gradient_LP, loss_L = torch.zeros_like(theta_LP), np.zeros(lanes)
        names = tuple(map(str, range(lanes)))
        for micro in self._micro(batches):
            for start, stop in even_spans(lanes, self._at_once(micro)):
                live = [lane for lane in range(start, stop) if micro[lane] is not None]
                if not live:
                    continue
                with self.clock("loading"):
                    bank = Bank.from_flat(names, self.layout, theta_LP)
                blocks = [Block(i, i + 1, micro[i]) for i in live]
                dropout = self._dropout([keys[i] for i in live])
                weft = Weft(
                    bank, self._stacks(live), dropout, None if self.base_dropout else self.trunk
                )
                with self.clock("forward and backward"), self._base_mode(keys[live[0]]):
                    loss_C = self.objective.cells(self.base, weft, blocks).loss_C
                    (part_LP,) = torch.autograd.grad(loss_C.sum(), theta_LP)
                gradient_LP += part_LP
                sizes = np.cumsum([len(micro[i].examples) for i in live])[:-1]
                parts = np.split(loss_C.detach().cpu().numpy(), sizes)
                loss_L[live] += [part.sum() for part in parts]
        return Gradient(gradient_LP, tuple(loss_L.tolist()))

    def counts(self, batches: Sequence[Batch]) -> np.ndarray:
        """By what each lane's loss [L] is divided."""
        return np.array([self.objective.counts(batch).sum() for batch in batches])

    def rewards(self, lane: int, population: Population, batch: Batch, key: Key) -> Graded:
        """A population of a lane, and its centre in the last row, on a batch."""
        assert self.crew is not None
        return self.crew.rewards(
            Generation(population, self._stacks([lane]), batch, key), self.clock
        )

    def _micro(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, ...]]:
        """Parts of all lanes' batches, in step; None for a lane that has no rows left."""
        yield from zip_longest(
            *(batch.micro(self.rows_per_forward or len(batch.examples) or 1) for batch in batches)
        )

    def _at_once(self, micro: Sequence[Batch | None]) -> int:
        here = (self.objective.rows(part) for part in micro if part is not None)
        return members_at_once(self.members_per_forward, here)

    def _stacks(self, lanes: Sequence[int]) -> Bank | None:
        return self.stacks.only(lanes) if self.stacks is not None else None

    def _dropout(self, keys: Sequence[Key]) -> Dropout | None:
        return Dropout(self.dropout, tuple(keys)) if self.dropout else None

    @contextmanager
    def _base_mode(self, key: Key) -> Iterator[None]:
        """The base's own dropout on, with keyed noise, if this scorer is asked for that."""
        if not self.base_dropout:
            yield
            return
        self.base.model.train()
        try:
            with global_generator(key.fold("base dropout")):
                yield
        finally:
            self.base.model.eval()
