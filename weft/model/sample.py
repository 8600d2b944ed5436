"""Greedy decoding of many members on many prompts in one loop with a preallocated cache.

A decode step is one packed row of one token for each (prompt, member). Prompts leave the loop
when all members are done with them. The arithmetic of a row does not depend on the others but
for rounding.

Shapes: N members, R prompts still going, B = R * N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from weft.core.batch import IGNORE, Batch, Example
from weft.core.errors import InputError
from weft.model.base import Base
from weft.model.cache import KVCache
from weft.model.forward import packed_hidden, target_logits
from weft.model.rows import Block, Piece, pack, pad
from weft.model.weaving import Weft


@torch.inference_mode()
def greedy(
    base: Base, weft: Weft, prompts: Sequence[np.ndarray], max_tokens: int
) -> list[list[list[int]]]:
    """Token ids of the most likely continuations, [member][prompt], without the stop token.

    A completion ends at a stop token, after `max_tokens`, or where the context is full. Raises
    `InputError` for an empty prompt and for one that leaves no room in the context.
    """
    for prompt in prompts:
        if len(prompt) == 0:
            raise InputError("the prompt is empty: there is no token to go on from")
        if base.context is not None and len(prompt) >= base.context:
            raise InputError(
                f"a prompt of {len(prompt)} tokens leaves no room in the context of {base.context}"
            )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    loop = _cached if base.packs else _recomputed
    done = loop(base, weft, [prompts[i] for i in order], max_tokens)
    place = {prompt: at for at, prompt in enumerate(order)}
    return [[member[place[i]] for i in range(len(prompts))] for member in done]


def _cached(
    base: Base, weft: Weft, prompts: Sequence[np.ndarray], max_tokens: int
) -> list[list[list[int]]]:
    members = len(weft.bank.members)
    lengths_R = np.array([len(p) for p in prompts])
    written = _Written(base, members, lengths_R, max_tokens)
    lengths_B = torch.from_numpy(np.repeat(lengths_R, members)).to(base.device)
    cache = KVCache(lengths_B, int(lengths_R.max()) + max_tokens)
    batch = Batch(tuple(Example("", p, np.full(len(p), IGNORE)) for p in prompts))
    rows = replace(pack([Block(0, members, batch)], base.device), cache=cache)
    hidden_TD = packed_hidden(base, weft, rows)
    cache.filled = True
    last_R = torch.from_numpy(np.cumsum(lengths_R) - 1).to(base.device)
    last_B = (last_R[:, None] * members + torch.arange(members, device=base.device)).flatten()
    hidden_BD = hidden_TD[last_B]
    while True:
        token_B = torch.nn.functional.linear(hidden_BD, *base.head).float().argmax(-1)
        going = written.add(token_B.view(-1, members).tolist())
        if not any(going):
            return written.texts
        if not all(going):
            kept_B = torch.tensor(going, device=base.device).repeat_interleave(members)
            cache.keep(kept_B)
            token_B = token_B[kept_B]
        count = sum(going)
        one = Example("", np.zeros(1, np.int64), np.full(1, IGNORE))
        rows = replace(
            rows,
            blocks=(Block(0, members, Batch((one,) * count)),),
            ids_1T=token_B[None],
            positions_1T=cache.lengths_B[None],
            pieces=(Piece(count, 1, members),),
        )
        hidden_BD = packed_hidden(base, weft, rows)
        cache.advance()


def _recomputed(
    base: Base, weft: Weft, prompts: Sequence[np.ndarray], max_tokens: int
) -> list[list[list[int]]]:
    """Without a cache: every step is a whole forward. For bases that must see padded batches."""
    texts = []
    for member in range(len(weft.bank.members)):
        alone = weft.members(member, member + 1)
        written = _Written(base, 1, np.array([len(p) for p in prompts]), max_tokens)
        going = list(prompts)
        while going:
            batch = Batch(tuple(_with_target(p) for p in going))
            rows = pad([Block(0, 1, batch)], base.pad_id, base.device)
            token_R = target_logits(base, alone, rows).argmax(-1).tolist()
            goes_on = written.add([[token] for token in token_R])
            going = [
                np.append(p, token)
                for p, token, on in zip(going, token_R, goes_on, strict=True)
                if on
            ]
        texts += written.texts
    return texts


class _Written:
    """What every row has said so far, and which prompts go on."""

    def __init__(self, base: Base, members: int, lengths_R: np.ndarray, max_tokens: int) -> None:
        self.stop_ids = base.stop_ids
        room = np.full(len(lengths_R), max_tokens)
        if base.context is not None:
            room = np.minimum(room, base.context - lengths_R)
        self.room = room.tolist()
        self.texts: list[list[list[int]]] = [[[] for _ in lengths_R] for _ in range(members)]
        self.open = [set(range(members)) for _ in lengths_R]
        self.going = list(range(len(lengths_R)))

    def add(self, token_RN: list[list[int]]) -> list[bool]:
        """Take one token for each row that is going; which of those prompts go on."""
        for prompt, token_N in zip(self.going, token_RN, strict=True):
            for member in tuple(self.open[prompt]):
                if token_N[member] in self.stop_ids:
                    self.open[prompt].discard(member)
                    continue
                text = self.texts[member][prompt]
                text.append(token_N[member])
                if len(text) >= self.room[prompt]:
                    self.open[prompt].discard(member)
        on = [bool(self.open[prompt]) for prompt in self.going]
        self.going = [prompt for prompt, goes in zip(self.going, on, strict=True) if goes]
        return on


def _with_target(prompt: np.ndarray) -> Example:
    """A prompt whose next position is a target, so that its logits are kept."""
    ids_T = np.append(prompt, prompt[-1])
    labels_T = np.full(len(ids_T), IGNORE)
    labels_T[-1] = prompt[-1]
    return Example("", ids_T, labels_T)
