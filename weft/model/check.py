"""Is the cache right? Every step is computed a second time without it, and compared.

Shapes: N members, R prompts, B = R * N rows with members fastest, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from weft.model.base import Base
from weft.model.decode import Stepper
from weft.model.decoding import Decoding
from weft.model.positions import Sighting, positions_seen
from weft.model.sampling import Chooser
from weft.model.steppers import RecomputingStepper
from weft.model.weaving import Weft

ROUNDING = {torch.float32: 2.0**-16, torch.bfloat16: 2.0**-5, torch.float16: 2.0**-8}
"""Difference that rounding explains, as a share of the largest logit: some units of the dtype's
precision, for sums in another order through every layer."""


@dataclass(frozen=True)
class Place:
    """A token of a completion: `token` counts from 1, `prompt` and `member` from 0."""

    member: int
    prompt: int
    token: int


@dataclass(frozen=True)
class Flip:
    """A token that would be another one without the cache."""

    place: Place
    chosen: int
    instead: int
    margin: float
    """By how much the recomputed logits prefer `instead`: of greedy ones, the top-2 margin."""


@dataclass(eq=False)
class CacheCheck:
    """What was compared so far: hand one to `generate`, and read it afterwards."""

    first_prompt: int = 0
    """Number of the first prompt of the call that is next, where prompts come in several calls."""
    tokens: int = 0
    """Tokens whose logits were compared; 0 where the base is run without a cache."""
    largest: float = 0.0
    """Largest absolute difference of a logit."""
    at: Place | None = None
    bound: float = 0.0
    """The difference that rounding explains, from the largest logit and the base's dtype."""
    flips: list[Flip] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all differences are rounding."""
        return self.largest <= self.bound

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "tokens": self.tokens,
            "largest_difference": self.largest,
            "at": vars(self.at) if self.at else None,
            "bound": self.bound,
            "passed": self.passed,
            "flips": [{**vars(flip), "place": vars(flip.place)} for flip in self.flips],
        }

    def watching(
        self,
        stepper: Stepper,
        base: Base,
        weft: Weft,
        prompts: Sequence[np.ndarray],
        decoding: Decoding,
        copies: Sequence[int] | None = None,
        places: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> Stepper:
        """The same stepper, with every step compared; itself where it has no cache.

        `places` are the numbers of member and prompt in the whole call, by prompt and member.
        """
        if isinstance(stepper, RecomputingStepper):
            return stepper
        choosers = (Chooser(decoding, prompts, copies), Chooser(decoding, prompts, copies))
        return _CheckedStepper(self, stepper, base, weft, prompts, choosers, places)


class _CheckedStepper:
    """Gives out what the stepper at hand computes, and compares it."""

    def __init__(
        self,
        check: CacheCheck,
        stepper: Stepper,
        base: Base,
        weft: Weft,
        prompts: Sequence[np.ndarray],
        choosers: tuple[Chooser, Chooser],
        places: Sequence[Sequence[tuple[int, int]]] | None,
    ) -> None:
        self.check, self.stepper = check, stepper
        self.again = RecomputingStepper(base, weft, prompts)
        self.share = ROUNDING[base.dtype]
        self.choosers = choosers
        self.places, self.first_prompt = places, check.first_prompt
        members = range(len(weft.bank.members))
        self.rows = [(member, prompt) for prompt in range(len(prompts)) for member in members]
        self.token = 0

    def start(self) -> torch.Tensor:
        logits_BV = self.stepper.start()
        with positions_seen():  # of its own: not what the stepper reads
            again_BV = self.again.start()
        self._compare(logits_BV, again_BV, [True] * len(self.rows))
        return logits_BV

    def extend(self, token_B: torch.Tensor, live_B: Sequence[bool]) -> torch.Tensor:
        logits_BV = self.stepper.extend(token_B, live_B)
        with positions_seen():
            again_BV = self.again.extend(token_B, live_B)
        self._compare(logits_BV, again_BV, live_B)
        return logits_BV

    def keep(self, rows: Sequence[int], members: Sequence[int]) -> None:
        self.stepper.keep(rows, members)
        self.again.keep(rows, members)
        self.rows = [self.rows[i] for i in rows]

    def positions(self, seen: Sequence[Sighting]) -> list[torch.Tensor]:
        return self.stepper.positions(seen)

    def _compare(
        self, cached_BV: torch.Tensor, again_BV: torch.Tensor, live_B: Sequence[bool]
    ) -> None:
        self.token += 1
        live = [row for row, is_live in enumerate(live_B) if is_live]
        gap_M = (cached_BV[live] - again_BV[live]).abs().amax(-1)
        gap_M = gap_M.nan_to_num(nan=torch.inf)  # what is not finite on one side only, too
        worst = int(gap_M.argmax())
        check = self.check
        check.tokens += len(live)
        check.bound = max(check.bound, self.share * max(1.0, float(again_BV[live].abs().max())))
        if check.at is None or float(gap_M[worst]) > check.largest:
            check.largest, check.at = float(gap_M[worst]), self._place(live[worst])
        of_prompt = [prompt for _, prompt in self.rows]
        history = [text.tolist() for text in self.again.texts]
        chosen_B, instead_B = (
            choose(logits_BV.clone(), of_prompt, history).tolist()
            for choose, logits_BV in zip(self.choosers, (cached_BV, again_BV), strict=True)
        )
        for row in live:
            chosen, instead = chosen_B[row], instead_B[row]
            if chosen != instead:
                margin = float(again_BV[row, instead] - again_BV[row, chosen])
                check.flips.append(Flip(self._place(row), chosen, instead, margin))

    def _place(self, row: int) -> Place:
        member, prompt = self.rows[row]
        if self.places is not None:
            member, prompt = self.places[prompt][member]
        return Place(member, self.first_prompt + prompt, self.token)
