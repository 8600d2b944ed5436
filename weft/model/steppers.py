"""How a base computes the next token's logits for many members and prompts, step by step.

Shapes: N members, R prompts, B = R * N rows with members fastest, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def stepper_for(base: Base, weft: Weft, prompts: Sequence[np.ndarray], room: int) -> Stepper:
    """The fast stepper where the base can run it, else the one that recomputes everything."""
    if base.packs:
        return CachedStepper(base, weft, prompts, room)
    return RecomputingStepper(base, weft, prompts)


class CachedStepper:
    """One prefill of all prompts, without padding, and then a token a row from a cache."""

    def __init__(self, base: Base, weft: Weft, prompts: Sequence[np.ndarray], room: int) -> None:
        """At most `room` tokens follow each prompt."""
        self.base, self.weft, self.prompts = base, weft, prompts
        members = len(weft.bank.members)
        lengths_B = np.repeat([len(p) for p in prompts], members)
        capacity = int(lengths_B.max()) + room
        self.cache = KVCache(lengths_B.tolist(), capacity, base.device)
        self._prepare_step()

    def start(self) -> torch.Tensor:
        """The prefill."""
        members = len(self.weft.bank.members)
        batch = Batch(tuple(Example("", p, np.full(len(p), IGNORE)) for p in self.prompts))
        rows = replace(pack([Block(0, members, batch)], self.base.device), cache=self.cache)
        hidden_TD = packed_hidden(self.base, self.weft, rows)
        self.cache.filled = True
        self.rows = rows
        lengths_R = np.array([len(p) for p in self.prompts])
        order_R = np.argsort(lengths_R, kind="stable")  # as `pack` lays them
        ends_R = np.empty_like(lengths_R)
        ends_R[order_R] = np.cumsum(lengths_R[order_R]) - 1
        last_B = (ends_R[:, None] * members + np.arange(members)).reshape(-1)
        return self._logits(hidden_TD[torch.from_numpy(last_B).to(self.base.device)])

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
