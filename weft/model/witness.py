"""Seeing what a generation computes: the logits of its first tokens, as they are chosen from.

Shapes: B rows of a step, V vocabulary, n tokens that a row reads in a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from weft.model.decode import Stepper
from weft.model.positions import Sighting, positions_seen

Place = tuple[int, int]
"""Numbers of a member and of a prompt."""


@dataclass(frozen=True, eq=False)
class Look:
    """What one token was chosen from, and where its step placed what it read."""

    logits_V: np.ndarray
    positions_n: np.ndarray | None
    """As they were applied: of the prompt, the token before, or the whole text so far."""


@dataclass(eq=False)
class Witness:
    """The logits of the first tokens of some prompts: hand one to `generate`, read it afterwards.

    What is kept are copies in float32; what is generated is the same with a witness and without.
    """

    prompts: int = 16
    """How many prompts are looked at: the first ones."""
    steps: int = 5
    """How many tokens of each."""
    first_prompt: int = 0
    """Number of the first prompt of the call that is next, where prompts come in several calls."""
    seen: dict[Place, list[Look]] = field(default_factory=dict)
    """By member and prompt: the first token, the second, ..."""

    def watching(self, stepper: Stepper, places: Sequence[Sequence[Place]]) -> Stepper:
        """The same stepper, looked at. `places` are all that each row of its grid speaks for."""
        return _Watched(self, stepper, [list(each) for each in places])

    def note(
        self, places: Sequence[Place], logits_V: torch.Tensor, positions_n: torch.Tensor | None
    ) -> None:
        """Keep what one row gave, where it is looked at."""
        for member, prompt in places:
            number = self.first_prompt + prompt
            if number < self.prompts:
                of_this = self.seen.setdefault((member, number), [])
                if len(of_this) < self.steps:
                    at_n = None if positions_n is None else positions_n.numpy().copy()
                    of_this.append(Look(logits_V.detach().float().cpu().numpy().copy(), at_n))


class _Watched:
    """Gives out what the stepper at hand computes, and shows it."""

    def __init__(self, witness: Witness, stepper: Stepper, places: list[list[Place]]) -> None:
        self.witness, self.stepper, self.places = witness, stepper, places

    def start(self) -> torch.Tensor:
        with positions_seen() as seen:
            logits_BV = self.stepper.start()
        return self._show(logits_BV, [True] * len(self.places), seen)

    def extend(self, token_B: torch.Tensor, live_B: Sequence[bool]) -> torch.Tensor:
        with positions_seen() as seen:
            logits_BV = self.stepper.extend(token_B, live_B)
        return self._show(logits_BV, live_B, seen)

    def keep(self, rows: Sequence[int], members: Sequence[int]) -> None:
        self.stepper.keep(rows, members)
        self.places = [self.places[i] for i in rows]

    def positions(self, seen: Sequence[Sighting]) -> list[torch.Tensor]:
        return self.stepper.positions(seen)

    def _show(
        self, logits_BV: torch.Tensor, live_B: Sequence[bool], seen: Sequence[Sighting]
    ) -> torch.Tensor:
        applied = self.stepper.positions(seen) if seen else []
        for row, (places, live) in enumerate(zip(self.places, live_B, strict=True)):
            if live:
                self.witness.note(places, logits_BV[row], applied[row] if applied else None)
        return logits_BV
