"""The engine in this process: scores and differentiates many adapters in one forward.

Shapes: L lanes (adapters that train together), N members, E examples, P parameters, S targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import zip_longest

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from weft.core.batch import Batch
from weft.core.keys import Key
from weft.data.stream_text import Detokeniser
from weft.engines.engine import Scores
from weft.methods.estimate import Gradient
from weft.model.adapter import Adapter, Layout, Site
from weft.model.bank import Bank
from weft.model.base import Base
from weft.model.check import CacheCheck
from weft.model.decode import OnToken, check_prompts, decode
from weft.model.decoding import Completion, Decoding
from weft.model.forward import make_rows, target_nll, target_scores
from weft.model.noise import global_generator
from weft.model.rows import Block
from weft.model.steppers import stepper_for
from weft.model.weaving import Dropout, Weft


@dataclass(frozen=True, eq=False)
class LocalEngine:
    """Forwards of one base with adapters over it.

    `members_per_forward` and `rows_per_forward` bound the memory of one forward; they change no
    result beyond rounding. `layout` is that of the adapters that train; `stack` lies below every
    member.
    """

    base: Base
    layout: Layout = field(default=Layout(()))
    stack: Adapter | None = None
    dropout: float = 0.0
    base_dropout: bool = False
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

    def score(self, bank: Bank, batch: Batch) -> Scores:
        """Every member on every example, without a graph and without dropout."""
        bank = bank.to(self.base.device)
        members, examples = len(bank.members), len(batch.examples)
        loss_NE = np.zeros((members, examples))
        correct_NE = np.zeros((members, examples), dtype=np.int64)
        column = 0
        for part in batch.micro(self.rows_per_forward or examples):
            for start, stop in _spans(members, self.members_per_forward):
                weft = Weft(bank.part(start, stop), self.stack)
                rows = make_rows(self.base, [Block(0, stop - start, part)])
                nll_S, correct_S = target_scores(self.base, weft, rows)
                cell_S = rows.targets.cell_S.cpu().numpy()
                here = np.s_[start:stop, column : column + len(part.examples)]
                shape = (stop - start, len(part.examples))
                for table, values_S in ((loss_NE, nll_S), (correct_NE, correct_S)):
                    sums = np.bincount(cell_S, values_S.cpu().numpy(), rows.targets.cells)
                    table[here] = sums.reshape(shape)
            column += len(part.examples)
        count_E = np.array([example.supervised for example in batch.examples])
        return Scores(loss_NE, correct_NE, count_E)

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
        for start, stop in _spans(len(bank.members), self.members_per_forward):
            weft = Weft(bank.part(start, stop).to(self.base.device), self.stack)
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

    def gradient(
        self, theta_LP: torch.Tensor, batches: Sequence[Batch], keys: Sequence[Key]
    ) -> Gradient:
        """The gradient of each lane's loss: nll over all its rows / all its supervised tokens.

        The denominator is that of the whole batch and dropout's noise is an example's own, so
        splitting a batch into several forwards changes nothing but the rounding. (The base's own
        dropout, if it is on, draws its noise anew for each forward.)
        """
        theta_LP = theta_LP.detach().requires_grad_()
        lanes = len(batches)
        gradient_LP, loss_L = torch.zeros_like(theta_LP), np.zeros(lanes)
        names = tuple(map(str, range(lanes)))
        parts = [batch.micro(self.rows_per_forward or len(batch.examples)) for batch in batches]
        for micro in zip_longest(*parts):
            for start, stop in _spans(lanes, self.members_per_forward):
                live = [lane for lane in range(start, stop) if micro[lane] is not None]
                if not live:
                    continue
                bank = Bank.from_flat(names, self.layout, theta_LP)
                rows = make_rows(self.base, [Block(i, i + 1, micro[i]) for i in live])
                weft = Weft(bank, self.stack, self._dropout([keys[i] for i in live]))
                with self._base_mode(keys[live[0]]):
                    nll_S = target_nll(self.base, weft, rows)
                    (part_LP,) = torch.autograd.grad(nll_S.sum(), theta_LP)
                gradient_LP += part_LP
                lane_S = _lanes_of(rows.targets.cell_S, [len(micro[i].examples) for i in live])
                loss_L[live] += np.bincount(lane_S, nll_S.detach().cpu(), len(live))
        # divided last, in fp32: small shares of a large batch would underflow in a 16-bit base
        counts = [batch.supervised for batch in batches]
        gradient_LP /= gradient_LP.new_tensor(counts)[:, None]
        return Gradient(gradient_LP, tuple((loss_L / counts).tolist()))

    def _dropout(self, keys: Sequence[Key]) -> Dropout | None:
        return Dropout(self.dropout, tuple(keys)) if self.dropout else None

    @contextmanager
    def _base_mode(self, key: Key) -> Iterator[None]:
        """The base's own dropout on, with keyed noise, if this engine is asked for that."""
        if not self.base_dropout:
            yield
            return
        self.base.model.train()
        try:
            with global_generator(key.fold("base dropout")):
                yield
        finally:
            self.base.model.eval()


def _lanes_of(cell_S: torch.Tensor, rows: Sequence[int]) -> np.ndarray:
    """Which of the live lanes each target belongs to, from its cell number."""
    return np.searchsorted(np.cumsum(rows), cell_S.cpu().numpy(), side="right")


def _offset(on_token: OnToken | None, first: int) -> OnToken | None:
    """Tell the members of a part by their numbers in the whole bank."""
    if on_token is None:
        return None
    return lambda member, prompt, token: on_token(first + member, prompt, token)


def _spans(count: int, size: int | None) -> Iterator[tuple[int, int]]:
    step = size or max(count, 1)
    for start in range(0, count, step):
        yield start, min(start + step, count)
