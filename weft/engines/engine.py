"""What an engine does: score members on examples, and continue prompts.

Shapes: N members, E examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from weft.core.batch import Batch
from weft.model.adapter import Site
from weft.model.bank import Bank
from weft.model.decode import OnToken
from weft.model.decoding import Completion, Decoding
from weft.model.objectives import TOKENS, Objective
from weft.model.witness import Witness

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Scores:
    """One row a member, one column an example: loss sums, hits, and the count of both."""

    loss_NE: np.ndarray
    correct_NE: np.ndarray
    count_E: np.ndarray


class Engine(Protocol):
    """Many adapters over one frozen base, whatever computes them."""

    @property
    def name(self) -> str:
        """How `--engine` calls it."""
        ...

    @property
    def ref(self) -> str:
        """What the base is called."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer."""
        ...

    @property
    def context(self) -> int | None:
        """The longest sequence that the base was built for, where it says so."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """The base's own stop tokens."""
        ...

    @property
    def sites(self) -> Mapping[str, Site]:
        """Every place of the base that can carry an adapter, by Weft's name of it."""
        ...

    def record(self) -> dict[str, str]:
        """What computes: name, device, dtype and versions, to be stored beside what it found."""
        ...

    def score(self, bank: Bank, batch: Batch, objective: Objective = TOKENS) -> Scores:
        """Every member on every example, without dropout."""
        ...

    def generate(
        self,
        bank: Bank,
        prompts: Sequence[np.ndarray],
        decoding: Decoding,
        on_token: OnToken | None = None,
        copies: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """The continuation of every prompt under every member: [member][prompt].

        A completion depends on the weights, its prompt and `decoding`, and on nothing else: not on
        its batch mates. Of a prompt that is given several times, each has noise of its own:
        `copies` numbers them, where some of them are in other calls.
        Raises `InputError` for an empty prompt and for one that leaves no room in the context.
        """
        ...

    def close(self) -> None:
        """Let go of what it holds beside this process; it is not used after that."""
        ...


class Watchable(Protocol):
    """An engine in this process: what it computes can be looked at."""

    def generate(
        self,
        bank: Bank,
        prompts: Sequence[np.ndarray],
        decoding: Decoding,
        on_token: OnToken | None = None,
        copies: Sequence[int] | None = None,
        *,
        witness: Witness | None = None,
    ) -> list[list[Completion]]:
        """As every engine's; a `witness` sees the logits."""
        ...
