"""The engine in this process: scores many adapters, and continues prompts, in one forward.

Shapes: N members, E examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from weft.core.batch import Batch, even_spans
from weft.data.stream_text import Detokeniser
from weft.engines.config import KV_MEMORY_MIB
from weft.engines.engine import Scores
from weft.engines.forwards import members_at_once
from weft.engines.tiles import Tile, tiles
from weft.model.adapter import Site
from weft.model.bank import Bank
from weft.model.base import Base
from weft.model.cache import token_bytes
from weft.model.check import CacheCheck
from weft.model.decode import NotFinite, OnToken, check_prompts, decode
from weft.model.decoding import Completion, Decoding, copy_numbers
from weft.model.objectives import TOKENS, Objective
from weft.model.rows import Block
from weft.model.steppers import stepper_for
from weft.model.weaving import Weft
from weft.model.witness import Witness

MIB = 2**20


@dataclass(frozen=True, eq=False)
class LocalEngine:
    """Forwards of one base with adapters over it.

    `members_per_forward` and `rows_per_forward` bound the memory of one forward, `kv_memory_mib`
    that of keys and values while texts are made; they change no result beyond rounding.
    """

    base: Base
    members_per_forward: int | None = None
    rows_per_forward: int | None = None
    kv_memory_mib: int = KV_MEMORY_MIB
    name: str = "local"

    @property
    def ref(self) -> str:
        """What the base is called."""
        return self.base.ref

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer."""
        return self.base.tokenizer

    @property
    def context(self) -> int | None:
        """The longest sequence that the base was built for, where it says so."""
        return self.base.context

    @property
    def stop_ids(self) -> frozenset[int]:
        """The base's own stop tokens."""
        return self.base.stop_ids

    @property
    def sites(self) -> Mapping[str, Site]:
        """Every place of the base that can carry an adapter."""
        return self.base.sites

    def record(self) -> dict[str, str]:
        """What computes: name, device, dtype and versions."""
        return {
            "name": self.name,
            "device": str(self.base.device),
            "dtype": str(self.base.dtype).removeprefix("torch."),
            **{package: version(package) for package in ("torch", "transformers")},
        }

    def score(self, bank: Bank, batch: Batch, objective: Objective = TOKENS) -> Scores:
        """Every member on every example, without a graph and without dropout."""
        bank = bank.to(self.base.device)
        members, examples = len(bank.members), len(batch.examples)
        loss_NE = np.zeros((members, examples))
        correct_NE = np.zeros((members, examples), dtype=np.int64)
        column = 0
        for part in batch.micro(self.rows_per_forward or examples):
            at_once = members_at_once(self.members_per_forward, [objective.rows(part)])
            for start, stop in even_spans(members, at_once):
                blocks = [Block(0, stop - start, part)]
                with torch.no_grad():
                    cells = objective.cells(self.base, Weft(bank.part(start, stop)), blocks)
                here = np.s_[start:stop, column : column + len(part.examples)]
                shape = (stop - start, len(part.examples))
                loss_NE[here] = cells.loss_C.cpu().numpy().reshape(shape)
                correct_NE[here] = cells.correct_C.cpu().numpy().reshape(shape)
            column += len(part.examples)
        return Scores(loss_NE, correct_NE, objective.counts(batch))

    def generate(
        self,
        bank: Bank,
        prompts: Sequence[np.ndarray],
        decoding: Decoding,
        on_token: OnToken | None = None,
        copies: Sequence[int] | None = None,
        check: CacheCheck | None = None,
        witness: Witness | None = None,
    ) -> list[list[Completion]]:
        """The continuation of every prompt under every member: [member][prompt].

        With `check` every step is computed a second time without the cache, and compared; a
        `witness` sees the logits.
        """
        check_prompts(prompts, self.context)
        copies = copies or copy_numbers(prompts)
        said: dict[tuple[int, int], Completion] = {}
        for tile in self.plan(len(bank.members), [len(p) for p in prompts], decoding.max_tokens):
            try:
                said |= self._tile(tile, bank, prompts, decoding, on_token, copies, check, witness)
            except NotFinite as error:
                where = tile.prompts[error.prompt]
                raise NotFinite(error.member, where, error.token) from None
        return [[said[m, p] for p in range(len(prompts))] for m in range(len(bank.members))]

    def _tile(
        self,
        tile: Tile,
        bank: Bank,
        prompts: Sequence[np.ndarray],
        decoding: Decoding,
        on_token: OnToken | None,
        copies: Sequence[int],
        check: CacheCheck | None,
        witness: Witness | None,
    ) -> dict[tuple[int, int], Completion]:
        """By (member, prompt), what a tile says. Members that are alike say it once for all."""
        part = bank.part(tile.start, tile.stop).to(self.base.device)
        groups = [[tile.start + n for n in group] for group in part.alike()]
        weft = Weft(part.only([group[0] - tile.start for group in groups]))
        here = [prompts[i] for i in tile.prompts]
        of_here = [copies[i] for i in tile.prompts]
        stepper = stepper_for(self.base, weft, here, decoding.max_tokens)
        if check is not None:
            places = [[(group[0], i) for group in groups] for i in tile.prompts]
            stepper = check.watching(stepper, self.base, weft, here, decoding, of_here, places)
        if witness is not None:
            rows = [[(m, i) for m in group] for i in tile.prompts for group in groups]
            stepper = witness.watching(stepper, rows)

        def tell(speaker: int, prompt: int, token: int) -> None:
            assert on_token is not None
            for member in groups[speaker]:
                on_token(member, tile.prompts[prompt], token)

        texts = decode(
            stepper,
            weft.bank.members,
            here,
            decoding,
            stop_ids=self.stop_ids,
            context=self.context,
            detokenise=lambda number: Detokeniser(self.tokenizer, here[number]),
            on_token=None if on_token is None else tell,
            copies=of_here,
        )
        return {
            (member, prompt): text
            for group, row in zip(groups, texts, strict=True)
            for member in group
            for prompt, text in zip(tile.prompts, row, strict=True)
        }

    def plan(self, members: int, lengths: Sequence[int], max_tokens: int) -> list[Tile]:
        """The tiles in which so many members continue prompts of these lengths."""
        return tiles(
            members,
            lengths,
            max_tokens,
            token_bytes(self.base.model.config, self.base.dtype),
            self.kv_memory_mib * MIB,
            context=self.context,
            most_members=self.members_per_forward,
        )

    def notices(self, lengths: Sequence[int], max_tokens: int) -> list[str]:
        """What there is to say before prompts of these lengths are continued."""
        row = max((tile.bytes for tile in self.plan(1, [max(lengths)], max_tokens)), default=0)
        if row <= self.kv_memory_mib * MIB:
            return []
        return [
            f"kv_memory_mib is {self.kv_memory_mib}, and the longest text can take "
            f"{row / MIB:,.0f} MiB of keys and values: texts are made one at a time, and take it"
        ]

    def close(self) -> None:
        """Nothing is held beside this process."""
