"""How a base computes the next token's logits for many members and prompts, step by step.

Shapes: N members, R prompts, B = R * N rows with members fastest, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from weft.core.batch import IGNORE, Batch, Example
from weft.model.attention import window_mask
from weft.model.base import Base
from weft.model.cache import KVCache
from weft.model.decode import Stepper
from weft.model.forward import make_rows, packed_hidden, target_logits
from weft.model.lean import Layer, LeanForward, LeanModel
from weft.model.positions import Sighting, note
from weft.model.products import product
from weft.model.rows import Block, Piece, pack
from weft.model.threads import threads_for
from weft.model.weaving import Weft

PREFILL_TOKENS = 512
"""Positions of one prefill forward: enough to keep the cores busy."""


def stepper_for(base: Base, weft: Weft, prompts: Sequence[np.ndarray], max_tokens: int) -> Stepper:
    """The fast stepper where the base can run it, else the one that recomputes everything."""
    if base.lean is not None:
        return LeanStepper(base, base.lean, weft, prompts, max_tokens)
    if base.packs:
        return PackedStepper(base, weft, prompts, max_tokens)
    return RecomputingStepper(base, weft, prompts)


class PackedStepper:
    """One prefill of all prompts, without padding, and then a token a row from a cache.

    Both run through the model's own modules.
    """

    def __init__(
        self, base: Base, weft: Weft, prompts: Sequence[np.ndarray], max_tokens: int
    ) -> None:
        """At most `max_tokens` follow each prompt, and none beyond the base's context."""
        self.base, self.weft, self.prompts = base, weft, prompts
        members = len(weft.bank.members)
        lengths_B = np.repeat([len(p) for p in prompts], members).tolist()
        self.cache = KVCache(lengths_B, capacity(base, lengths_B, max_tokens), base.device)

    def start(self) -> torch.Tensor:
        """The prefill, in parts that bound the memory of its activations."""
        members = len(self.weft.bank.members)
        order_R = np.argsort([len(p) for p in self.prompts], kind="stable")  # as the cache fills
        parts = [
            self._prefill([self.prompts[i] for i in order_R[part]])
            for part in parts_of([len(self.prompts[i]) * members for i in order_R])
        ]
        self.cache.filled = True
        self.place_R = np.argsort(order_R).tolist()  # of each prompt, in what was read last
        return self._logits(torch.cat(parts)[self.place_R].flatten(0, 1))

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
        with threads_for(self.base.sites.values(), len(token_B)):
            return self._extend(token_B, live_B)

    def _extend(self, token_B: torch.Tensor, live_B: Sequence[bool]) -> torch.Tensor:
        members = len(self.weft.bank.members)
        count = len(token_B) // members
        self.place_R = list(range(count))
        one = Example("", np.zeros(1, np.int64), np.full(1, IGNORE))
        rows = replace(
            self.rows,
            blocks=(Block(0, members, Batch((one,) * count)),),
            ids_1T=token_B[None],
            positions_1T=self.cache.lengths_B[None],
            pieces=(Piece(count, 1, members),),
        )
        hidden_BD = packed_hidden(self.base, self.weft, rows)
        self.cache.advance(live_B)
        return self._logits(hidden_BD)

    def keep(self, rows: Sequence[int], members: Sequence[int]) -> None:
        """The cache of these rows, and the adapters of these members."""
        self.cache.keep(rows)
        self.weft = self.weft.only(members)

    def positions(self, seen: Sequence[Sighting]) -> list[torch.Tensor]:
        """As the model's own modules apply them."""
        read = [at_Nn for each in seen for block in each.by_example() for at_Nn in block]
        return [at_n for place in self.place_R for at_n in read[place]] if read else []

    def _logits(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        return product(hidden_BD, *self.base.head).float()


def capacity(base: Base, lengths: Sequence[int], max_tokens: int) -> int:
    """Positions of a cache whose texts begin with so many tokens each."""
    longest = max(lengths) + max_tokens
    return longest if base.context is None else min(longest, base.context)


def parts_of(tokens: Sequence[int]) -> Iterator[slice]:
    """Consecutive prompts of at most `PREFILL_TOKENS` together, or one that is longer."""
    start = total = 0
    for at, count in enumerate(tokens):
        if at > start and total + count > PREFILL_TOKENS:
            yield slice(start, at)
            start, total = at, 0
        total += count
    yield slice(start, len(tokens))


class LeanStepper:
    """The same for a model that has a lean form.

    Inside, the rows of a member follow one another, in the order of their prompts' lengths: they
    are one matrix for its update, and prompts of one length are one attention. Layers below the
    first adapted one read each prompt once for all members.
    """

    def __init__(
        self,
        base: Base,
        lean: LeanModel,
        weft: Weft,
        prompts: Sequence[np.ndarray],
        max_tokens: int,
    ) -> None:
        """At most `max_tokens` follow each prompt, and none beyond the base's context."""
        self.base, self.lean, self.forward = base, lean, LeanForward.of(lean, weft)
        members = self.forward.members
        order_R = np.argsort([len(p) for p in prompts], kind="stable")
        self.prompts = [prompts[i] for i in order_R]
        lengths = [len(p) for p in self.prompts]
        self.cache = KVCache(lengths * members, capacity(base, lengths, max_tokens), base.device)
        self.rotations = lean.rotations(self.cache.capacity)
        inside_NR = torch.arange(members * len(prompts)).view(members, -1)
        self._lay(inside_NR.T[np.argsort(order_R)].flatten())

    def _lay(self, inside_B: torch.Tensor) -> None:
        """Where each row of the grid lies inside, and which row of the grid each one inside is."""
        self.inside_B, self.outside_B = inside_B, inside_B.argsort()
        self.outside = self.outside_B.tolist()

    def start(self) -> torch.Tensor:
        """The prefill, in parts that bound the memory of its activations."""
        parts = parts_of([len(p) * self.forward.members for p in self.prompts])
        ends_NRD = torch.cat([self._prefill(part) for part in parts], dim=1)
        self.cache.filled = True
        return self._logits(ends_NRD.flatten(0, 1))

    def _prefill(self, part: slice) -> torch.Tensor:
        """The last hidden state [N, r, D] of r prompts that rise in length."""
        members, layers = self.forward.members, len(self.lean.layers)
        lengths = [len(p) for p in self.prompts[part]]
        ids_M = torch.from_numpy(np.concatenate(self.prompts[part])).to(self.base.device)
        places_M = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))
        first = min(self.forward.first_adapted, layers - 1)
        attend = _InPrompts(self.cache, members, self.lean.scaling, part, lengths)
        x_MD = self.forward(self.lean.embed(ids_M), self._rotation(places_M), attend, range(first))
        ends_r = torch.tensor(lengths).cumsum(0) - 1
        ends_Nr = torch.arange(members)[:, None] * len(ids_M) + ends_r
        x_Nr_D = self.forward(
            x_MD.repeat(members, 1),
            self._rotation(places_M.repeat(members)),
            attend,
            range(first, layers),
            ends=ends_Nr.flatten(),
        )
        return x_Nr_D.unflatten(0, (members, -1))

    def extend(self, token_B: torch.Tensor, live_B: Sequence[bool]) -> torch.Tensor:
        """One token for each text."""
        with threads_for(self.base.sites.values(), len(token_B)):
            x_BD = self.forward(
                self.lean.embed(token_B[self.outside_B]),
                self._rotation(self.cache.lengths_B),
                self._attend_to_cache,
                range(len(self.lean.layers)),
            )
            self.cache.advance([live_B[i] for i in self.outside])
            return self._logits(x_BD)

    def keep(self, rows: Sequence[int], members: Sequence[int]) -> None:
        """The cache of these rows, and the adapters of these members."""
        self.cache.keep(self.inside_B[rows].view(-1, len(members)).T.flatten().tolist())
        self._lay(torch.arange(len(rows)).view(len(members), -1).T.flatten())
        if list(members) != list(range(self.forward.members)):
            self.forward = self.forward.only(members)

    def positions(self, seen: Sequence[Sighting]) -> list[torch.Tensor]:
        """As they are looked up among the rotations; of a prefill by its upper layers."""
        inside: Sequence[torch.Tensor] = list(seen[0].at[:, None]) if len(seen) == 1 else []
        if not inside:
            lengths = [len(prompt) for prompt in self.prompts]
            parts = parts_of([n * self.forward.members for n in lengths])
            read = [
                each.at.view(self.forward.members, -1).split(lengths[part], dim=1)
                for part, each in zip(parts, seen[1::2], strict=True)
            ]
            inside = [at_Nn[n] for n in range(self.forward.members) for at in read for at_Nn in at]
        return [inside[place] for place in self.inside_B.tolist()]

    def _attend_to_cache(
        self,
        number: int,
        layer: Layer,
        q_BHd: torch.Tensor,
        k_BGd: torch.Tensor,
        v_BGd: torch.Tensor,
    ) -> torch.Tensor:
        return self.cache.attend(number, q_BHd, k_BGd, v_BGd, self.lean.scaling, layer.window)

    def _rotation(self, place_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        note(place_T)
        cos_Cd, sin_Cd = self.rotations
        return cos_Cd[place_T][:, None], sin_Cd[place_T][:, None]

    def _logits(self, inside_BD: torch.Tensor) -> torch.Tensor:
        hidden_BD = self.lean.norm(inside_BD[self.inside_B])
        return product(hidden_BD, *self.base.head).float()


@dataclass(frozen=True, eq=False)
class _InPrompts:
    """Causal attention inside each prompt of a part, whose keys and values go into the cache.

    Shapes: n members, or 1 for all, M positions of the part, k prompts of l tokens.
    """

    cache: KVCache
    members: int
    scaling: float
    part: slice
    lengths: Sequence[int]

    def __call__(
        self,
        number: int,
        layer: Layer,
        q_THd: torch.Tensor,
        k_TGd: torch.Tensor,
        v_TGd: torch.Tensor,
    ) -> torch.Tensor:
        """For all positions [n * M, H, d]."""
        grid = (-1, sum(self.lengths))
        rows_NR = torch.arange(len(self.cache.lengths)).view(self.members, -1)
        at, row, parts = 0, self.part.start, []
        for length, same in groupby(self.lengths):
            count = len(list(same))
            here = slice(at, at + count * length)
            q, k, v = (
                x.unflatten(0, grid)[:, here].unflatten(1, (count, length)).transpose(2, 3)
                for x in (q_THd, k_TGd, v_TGd)
            )  # [n, k, H or G, l, d]
            self.cache.put(number, rows_NR[:, row : row + count], k, v)
            mask = window_mask(length, layer.window, q.device)
            out_RHld = scaled_dot_product_attention(
                q.flatten(0, 1),
                k.flatten(0, 1),
                v.flatten(0, 1),
                attn_mask=mask,
                is_causal=mask is None,
                scale=self.scaling,
                enable_gqa=q.shape[2] != k.shape[2],
            )
            parts.append(out_RHld.unflatten(0, (-1, count)).transpose(2, 3).flatten(1, 2))
            at, row = here.stop, row + count
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).flatten(0, 1)


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

    def positions(self, seen: Sequence[Sighting]) -> list[torch.Tensor]:
        """As the model's own modules apply them, to every token of a text."""
        members = [block for each in seen for block in each.by_example()]
        return [at_1n[0] for row in zip(*members, strict=True) for at_1n in row]

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
