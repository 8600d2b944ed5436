"""How a base computes the next token's logits for many members and prompts, step by step.

Shapes: N members, R prompts, B = R * N rows with members fastest, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from weft.core.batch import IGNORE, Batch, Example
from weft.model.base import Base
from weft.model.cache import KVCache
from weft.model.decode import Stepper
from weft.model.forward import make_rows, packed_hidden, target_logits
from weft.model.lean import LeanStep
from weft.model.rows import Block, Piece, pack
from weft.model.weaving import Weft

PREFILL_TOKENS = 512
"""Positions of one prefill forward: enough to keep the cores busy."""


def stepper_for(base: Base, weft: Weft, prompts: Sequence[np.ndarray], max_tokens: int) -> Stepper:
    """The fast stepper where the base can run it, else the one that recomputes everything."""
    if base.packs:
        return CachedStepper(base, weft, prompts, max_tokens)
    return RecomputingStepper(base, weft, prompts)


class CachedStepper:
    """One prefill of all prompts, without padding, and then a token a row from a cache."""

    def __init__(
        self, base: Base, weft: Weft, prompts: Sequence[np.ndarray], max_tokens: int
    ) -> None:
        """At most `max_tokens` follow each prompt, and none beyond the base's context."""
        self.base, self.weft, self.prompts = base, weft, prompts
        members = len(weft.bank.members)
        lengths_B = np.repeat([len(p) for p in prompts], members)
        longest = int(lengths_B.max()) + max_tokens
        capacity = longest if base.context is None else min(longest, base.context)
        self.cache = KVCache(lengths_B.tolist(), capacity, base.device)
        self._prepare_step()

    def start(self) -> torch.Tensor:
        """The prefill, in parts that bound the memory of its activations."""
        members = len(self.weft.bank.members)
        order_R = np.argsort([len(p) for p in self.prompts], kind="stable")  # as the cache fills
        parts = [
            self._prefill([self.prompts[i] for i in order_R[part]])
            for part in _parts([len(self.prompts[i]) * members for i in order_R])
        ]
        self.cache.filled = True
        place_R = torch.from_numpy(np.argsort(order_R)).to(self.base.device)
        return self._logits(torch.cat(parts)[place_R].flatten(0, 1))

    def _prefill(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        """The last hidden state [M, N, D] of prompts that rise in length."""
        members = len(self.weft.bank.members)
        batch = Batch(tuple(Example("", p, np.full(len(p), IGNORE)) for p in prompts))
        self.rows = replace(pack([Block(0, members, batch)], self.base.device), cache=self.cache)
        hidden_TD = packed_hidden(self.base, self.weft, self.rows)
        self.cache.began += len(prompts) * members
        ends_M = torch.tensor([len(p) for p in prompts], device=self.base.device).cumsum(0) - 1
        return hidden_TD.unflatten(0, (-1, members))[ends_M]

    def extend(self, token_B: torch.Tensor, live_B: Sequence[bool]) -> torch.Tensor:
        """One token for each text."""
        hidden_BD = self.step(token_B, self.cache)
        self.cache.advance(live_B)
        return self._logits(hidden_BD)

    def keep(self, rows: Sequence[int], members: Sequence[int]) -> None:
        """The cache of these rows, and the adapters of these members."""
        self.cache.keep(rows)
        if list(members) != list(range(len(self.weft.bank.members))):
            self.weft = self.weft.only(members)
            self._prepare_step()

    def _prepare_step(self) -> None:
        """The lean step where the base has one, else the model's own modules on a packed row."""
        lean = self.base.lean
        self.step: Callable[[torch.Tensor, KVCache], torch.Tensor] = (
            self._packed_step if lean is None else LeanStep(lean, self.weft, self.cache.capacity)
        )

    def _packed_step(self, token_B: torch.Tensor, cache: KVCache) -> torch.Tensor:
        members = len(self.weft.bank.members)
        count = len(token_B) // members
        one = Example("", np.zeros(1, np.int64), np.full(1, IGNORE))
        rows = replace(
            self.rows,
            blocks=(Block(0, members, Batch((one,) * count)),),
            ids_1T=token_B[None],
            positions_1T=cache.lengths_B[None],
            pieces=(Piece(count, 1, members),),
        )
        return packed_hidden(self.base, self.weft, rows)

    def _logits(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(hidden_BD, *self.base.head).float()


def _parts(tokens: Sequence[int]) -> Iterator[slice]:
    """Consecutive prompts of at most `PREFILL_TOKENS` together, or one that is longer."""
    start = total = 0
    for at, count in enumerate(tokens):
        if at > start and total + count > PREFILL_TOKENS:
            yield slice(start, at)
            start, total = at, 0
        total += count
    yield slice(start, len(tokens))


class RecomputingStepper:
    """Without a cache: every step is a whole forward of every text. Slow, and simple to trust."""

    def __init__(self, base: Base, weft: Weft, prompts: Sequence[np.ndarray]) -> None:
        self.base, self.weft = base, weft
        self.texts = [p for p in prompts for _ in weft.bank.members]

    def start(self) -> torch.Tensor:
        """Logits after each prompt."""
        count = len(self.weft.bank.members)
        columns = [self._member(n, self.texts[n::count]) for n in range(count)]
        return torch.stack(columns, dim=1).flatten(0, 1)

    def extend(self, token_B: torch.Tensor, live_B: Sequence[bool]) -> torch.Tensor:
        """Logits after each text with its new token."""
        self.texts = [
            np.append(text, token) if live else text
            for text, token, live in zip(self.texts, token_B.tolist(), live_B, strict=True)
        ]
        return self.start()

    def keep(self, rows: Sequence[int], members: Sequence[int]) -> None:
        """These texts under these members."""
        self.texts = [self.texts[i] for i in rows]
        self.weft = self.weft.only(members)

    def _member(self, member: int, texts: Sequence[np.ndarray]) -> torch.Tensor:
        """Logits [M, V] after each text under one member."""
        rows = make_rows(self.base, [Block(0, 1, Batch(tuple(map(_with_target, texts))))])
        logits_MV = target_logits(self.base, self.weft.only([member]), rows)
        return logits_MV[rows.targets.cell_S.argsort()]


def _with_target(text: np.ndarray) -> Example:
    """A text whose next position is a target, so that its logits are kept."""
    ids_T = np.append(text, text[-1])
    labels_T = np.full(len(ids_T), IGNORE)
    labels_T[-1] = text[-1]
    return Example("", ids_T, labels_T)
