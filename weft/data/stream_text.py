"""Tokens to text as they come: what was given out once is never taken back.

Held back are the end of a text that may still become something else (part of a character, the
beginning of a stop text), so that all that was given out is, in the end, exactly the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from weft.data.tokens import decode_completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PART = "\ufffd"
"""What a tokenizer writes for bytes that are no character (yet)."""

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token that is one byte: a run of them is text only as a whole."""

CLEANED = 4
"""Characters at the end that a tokenizer which tidies up spaces may still rewrite."""


class TextStream:
    """The text of one completion, piece by piece."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt_ids_T: np.ndarray, stops: Sequence[str]
    ) -> None:
        """`stops` are the texts before which the completion ends."""
        self.ids: list[int] = []
        self.given = ""
        self._stops = tuple(stops)
        self._tokenizer, self._prompt_ids_T = tokenizer, prompt_ids_T
        self._special = frozenset(tokenizer.all_special_ids)
        self._unsure = CLEANED if tokenizer.clean_up_tokenization_spaces else 0

    def add(self, token: int) -> str:
        """Take a token; the text that is certain now and was not before, perhaps none."""
        self.ids.append(token)
        settled = len(self.ids)
        while settled and self._joins_bytes(self.ids[settled - 1]):
            settled -= 1
        said = before_stop(self._decode(self.ids[:settled]), self._stops).rstrip(PART)
        said = said[: max(len(said) - self._unsure, 0)]
        return self._give(said[: len(said) - _begun(said, self._stops)])

    def rest(self) -> str:
        """The text that was held back; call it when the completion has ended."""
        return self._give(self.text)

    @property
    def text(self) -> str:
        """The text so far, as it is if nothing follows."""
        return before_stop(self._decode(self.ids), self._stops)

    def _decode(self, ids: Sequence[int]) -> str:
        return decode_completion(self._tokenizer, self._prompt_ids_T, ids)

    def _joins_bytes(self, token: int) -> bool:
        """Whether the token is a byte, or leaves no trace between two of them."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return token in self._special or bool(piece and BYTE.fullmatch(piece))

    def _give(self, said: str) -> str:
        new = said[len(self.given) :]
        self.given += new
        return new


def before_stop(said: str, stops: Sequence[str]) -> str:
    """The text before the first stop text in it; all of it where there is none."""
    return said[: min((said.index(stop) for stop in stops if stop in said), default=len(said))]


def _begun(said: str, stops: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a stop text."""
    longest = max(map(len, stops), default=1) - 1
    return next(
        (n for n in range(min(longest, len(said)), 0, -1) if _begins(said[-n:], stops)),
        0,
    )


def _begins(end: str, stops: Sequence[str]) -> bool:
    return any(stop.startswith(end) for stop in stops)
