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

from weft.core.batch import Batch, spans
from weft.data.stream_text import Detokeniser
from weft.engines.engine import Scores
from weft.model.adapter import Site
from weft.model.bank import Bank
from weft.model.base import Base
from weft.model.check import CacheCheck
from weft.model.decode import OnToken, check_prompts, decode
from weft.model.decoding import Completion, Decoding
from weft.model.objectives import TOKENS, Objective
from weft.model.rows import Block
from weft.model.steppers import stepper_for
from weft.model.weaving import Weft


@dataclass(frozen=True, eq=False)
class LocalEngine:
    """Forwards of one base with adapters over it.

    `members_per_forward` and `rows_per_forward` bound the memory of one forward; they change no
    result beyond rounding.
    """

    base: Base
    members_per_forward: int | None = None
    rows_per_forward: int | None = None
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
            for start, stop in spans(members, self.members_per_forward):
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
    ) -> list[list[Completion]]:
        """The continuation of every prompt under every member: [member][prompt].

        With `check` every step is computed a second time without the cache, and compared.
        """
        check_prompts(prompts, self.context)
        tokenizer = self.tokenizer
        texts = []
        for start, stop in spans(len(bank.members), self.members_per_forward):
            weft = Weft(bank.part(start, stop).to(self.base.device))
            stepper = stepper_for(self.base, weft, prompts, decoding.max_tokens)
            if check is not None:
                stepper = check.watching(
                    stepper, self.base, weft, prompts, decoding, copies, first_member=start
                )
            texts += decode(
                stepper,
                weft.bank.members,
                prompts,
                decoding,
                stop_ids=self.stop_ids,
                context=self.context,
                detokenise=lambda number: Detokeniser(tokenizer, prompts[number]),
                on_token=_offset(on_token, start),
                copies=copies,
            )
        return texts

    def close(self) -> None:
        """Nothing is held beside this process."""


def _offset(on_token: OnToken | None, first: int) -> OnToken | None:
    """Tell the members of a part by their numbers in the whole bank."""
    if on_token is None:
        return None
    return lambda member, prompt, token: on_token(first + member, prompt, token)
