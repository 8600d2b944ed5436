"""The one loop that continues prompts: many members on many prompts, token by token.

The rows of a step form a grid: M texts of each of N members. Texts that are over leave when that
makes the grid noticeably smaller, and members that have finished leave altogether; until then an
ended text is a filler, whose numbers nobody looks at.

Shapes: N members and M texts of each in the grid, B = M * N rows with members fastest,
V vocabulary.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Protocol

import numpy as np
import torch

from weft.core.errors import InputError, NumericError
from weft.model.decoding import Completion, Decoding, Finish
from weft.model.positions import Sighting
from weft.model.sampling import Chooser

WORTH_IT = 7 / 8
"""Copying the cache into a smaller grid pays when the grid shrinks to this share of its rows."""

OnToken = Callable[[int, int, int], None]
"""Called with (member, prompt, token) as soon as a token is chosen; stop tokens are not told."""


class Growing(Protocol):
    """The text of a completion, as its tokens come."""

    def add(self, token: int) -> None:
        """Take a token."""
        ...

    @property
    def text(self) -> str:
        """The text so far."""
        ...


Detokenise = Callable[[int], Growing]
"""An empty completion of a prompt, by its number."""


class NotFinite(NumericError):
    """A member's logits are no numbers: it can say nothing."""

    def __init__(self, member: str, prompt: int, token: int, where: str | None = None) -> None:
        """`prompt` counts from 0 and `token` from 1; `where` is what the prompt is called."""
        super().__init__(
            f"{member} on {where or f'prompt {prompt + 1}'}: the logits of token {token} are not "
            "finite",
            hint="its adapter holds values that are not finite, or too large for the dtype; "
            "`weft inspect` shows its norms",
        )
        self.member, self.prompt, self.token = member, prompt, token


class Stepper(Protocol):
    """Computes the logits of the next token of every row."""

    def start(self) -> torch.Tensor:
        """logits [B, V] after each prompt, under every member."""
        ...

    def extend(self, token_B: torch.Tensor, live_B: Sequence[bool]) -> torch.Tensor:
        """Append a token to every row; logits [B, V]. Rows that are not live stay as they are."""
        ...

    def keep(self, rows: Sequence[int], members: Sequence[int]) -> None:
        """Go on with these rows of the last step, and these of its members, in this order."""
        ...

    def positions(self, seen: Sequence[Sighting]) -> list[torch.Tensor]:
        """Of each row, where the last step placed what it read [n]; none if nobody saw that.

        `seen` is what `positions_seen` gave around that step.
        """
        ...


@dataclass(eq=False)
class _Text:
    """One row of the loop: what a member has said so far on a prompt."""

    member: int
    prompt: int
    room: int
    limit: Finish
    history: array[int]
    """Prompt and completion."""
    ids: list[int] = field(default_factory=list)
    said: Growing | None = None
    """Kept where a text can end it."""
    finish: Finish | None = None
    stopped_by: int | str | None = None

    @property
    def live(self) -> bool:
        return self.finish is None

    def completion(self) -> Completion:
        assert self.finish is not None
        return Completion(tuple(self.ids), self.finish, self.stopped_by)


def check_prompts(prompts: Sequence[np.ndarray], context: int | None) -> None:
    """Raise `InputError` for a prompt that nothing can follow."""
    for number, prompt in enumerate(prompts, 1):
        which = "the prompt" if len(prompts) == 1 else f"prompt {number}"
        if len(prompt) == 0:
            raise InputError(
                f"{which} is empty: there is no token to go on from",
                hint="this tokenizer puts nothing (no BOS) before a text; give a word or two",
            )
        if context is not None and len(prompt) >= context:
            raise InputError(
                f"{which} has {len(prompt)} tokens, which leaves no room in the context of "
                f"{context}",
                hint="shorten the prompt",
            )


@torch.inference_mode()
def decode(
    stepper: Stepper,
    members: Sequence[str],
    prompts: Sequence[np.ndarray],
    decoding: Decoding,
    *,
    stop_ids: frozenset[int],
    context: int | None,
    detokenise: Detokenise,
    on_token: OnToken | None = None,
    copies: Sequence[int] | None = None,
) -> list[list[Completion]]:
    """Completions, [member][prompt]. `stepper` starts from these prompts; `stop_ids` end a text.

    `copies` says which of its copies each prompt is, where some of them are in other calls.
    Raises `NotFinite` for logits that are no numbers.
    """
    texts = [
        _start(member, number, prompt, decoding, context)
        for number, prompt in enumerate(prompts)
        for member in range(len(members))
    ]
    rows, present = texts, list(range(len(members)))
    ending = stop_ids if not decoding.ignore_eos else frozenset()
    take = _Taking(ending.union(decoding.stop_ids), decoding.stop, on_token)
    if decoding.stop:
        for text in texts:
            text.said = detokenise(text.prompt)
    choose = Chooser(decoding, prompts, copies)
    logits_BV = stepper.start()
    while True:
        token_B = choose(logits_BV, [t.prompt for t in rows], [t.history for t in rows])
        ended = False
        best_B = logits_BV.amax(-1).tolist()
        for text, token, best in zip(rows, token_B.tolist(), best_B, strict=True):
            if not text.live:
                continue
            if not isfinite(best):
                raise NotFinite(members[text.member], text.prompt, len(text.ids) + 1)
            take(text, token)
            ended |= not text.live
        if not any(text.live for text in rows):
            break
        if ended:
            kept, still = _smaller_grid(rows, len(present))
            if len(kept) <= WORTH_IT * len(rows):
                stepper.keep(kept, still)
                rows, token_B = [rows[i] for i in kept], token_B[kept]
                present = [present[i] for i in still]
        logits_BV = stepper.extend(token_B, [text.live for text in rows])
    by_row = iter(texts)
    columns = [[next(by_row).completion() for _ in members] for _ in prompts]
    return [list(texts) for texts in zip(*columns, strict=True)]


def _start(
    member: int, number: int, prompt: np.ndarray, decoding: Decoding, context: int | None
) -> _Text:
    room = decoding.max_tokens if context is None else context - len(prompt)
    limit: Finish = "max_tokens" if decoding.max_tokens <= room else "context"
    return _Text(member, number, min(room, decoding.max_tokens), limit, array("q", prompt.tolist()))


@dataclass(frozen=True, eq=False)
class _Taking:
    """Adds tokens to texts, and ends them."""

    ending: frozenset[int]
    stops: tuple[str, ...]
    on_token: OnToken | None

    def __call__(self, text: _Text, token: int) -> None:
        if token in self.ending:
            text.finish, text.stopped_by = "stop token", token
            return
        text.ids.append(token)
        text.history.append(token)
        if self.on_token is not None:
            self.on_token(text.member, text.prompt, token)
        if text.said is not None:
            text.said.add(token)
            said = text.said.text
            found = [stop for stop in self.stops if stop in said]
            if found:
                text.finish, text.stopped_by = "stop text", min(found, key=said.index)
                return
        if len(text.ids) >= text.room:
            text.finish = text.limit


def _smaller_grid(rows: Sequence[_Text], members: int) -> tuple[list[int], list[int]]:
    """The rows of the smallest grid that holds all live texts, and its members' old places."""
    columns = [range(place, len(rows), members) for place in range(members)]
    live = [sum(rows[i].live for i in column) for column in columns]
    height = max(live)
    still = [place for place in range(members) if live[place]]
    ranked = [sorted(columns[place], key=lambda i: not rows[i].live)[:height] for place in still]
    return [i for texts in zip(*(sorted(r) for r in ranked), strict=True) for i in texts], still
