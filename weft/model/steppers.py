"""How a base computes the next token's logits for many members and prompts, step by step.

Shapes: N members, R prompts, B = R * N rows with members fastest, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from weft.core.batch import IGNORE, Batch, Example
from weft.model.base import Base
from weft.model.cache import KVCache
from weft.model.decode import Stepper
from weft.model.forward import make_rows, packed_hidden, target_logits
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
        self.order = np.argsort(lengths_B, kind="stable")  # as `pack` lays them
        self.cache = KVCache(
            torch.from_numpy(lengths_B[self.order]).to(base.device), int(lengths_B.max()) + room
        )

    def start(self) -> torch.Tensor:
        """The prefill."""
        members = len(self.weft.bank.members)
        batch = Batch(tuple(Example("", p, np.full(len(p), IGNORE)) for p in self.prompts))
        rows = replace(pack([Block(0, members, batch)], self.base.device), cache=self.cache)
        hidden_TD = packed_hidden(self.base, self.weft, rows)
        ends_R = np.cumsum(np.sort([len(p) for p in self.prompts])) - 1
        last_B = (ends_R[:, None] * members + np.arange(members)).reshape(-1)
        self.cache.filled = True
        self.cache.keep(torch.from_numpy(np.argsort(self.order)).to(self.base.device))
        self.rows = rows
        return self._logits(hidden_TD[torch.from_numpy(last_B[np.argsort(self.order)])])

    def extend(self, token_B: torch.Tensor, live_B: Sequence[bool]) -> torch.Tensor:
        """A packed row of one token for each text."""
        members = len(self.weft.bank.members)
        count = len(token_B) // members
        one = Example("", np.zeros(1, np.int64), np.full(1, IGNORE))
        rows = replace(
            self.rows,
            blocks=(Block(0, members, Batch((one,) * count)),),
            ids_1T=token_B[None],
            positions_1T=self.cache.lengths_B[None],
            pieces=(Piece(count, 1, members),),
        )
        hidden_BD = packed_hidden(self.base, self.weft, rows)
        self.cache.advance(torch.tensor(live_B, device=self.base.device))
        return self._logits(hidden_BD)

    def keep(self, rows: Sequence[int], members: Sequence[int]) -> None:
        """The cache of these rows, and the adapters of these members."""
        self.cache.keep(torch.tensor(rows, device=self.base.device))
        self.weft = self.weft.only(members)

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
