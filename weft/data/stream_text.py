"""Tokens to text as they come: what was given out once is never taken back.

Held back are the end of a text that may still become something else (part of a character, the
beginning of a stop text), so that all that was given out is, in the end, exactly the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from weft.data.tokens import CONTEXT_IDS, decode_completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PART = "\ufffd"
"""What a tokenizer writes for bytes that are no character (yet)."""

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token that is one byte: a run of them is text only as a whole."""

CLEANED = 4
"""Characters at the end that a tokenizer which tidies up spaces may still rewrite."""


SPAN = 16
"""Tokens at the end that are decoded anew with each one more: at least so many, at most twice."""


class Detokeniser:
    """The text of a completion that grows; what is long settled is not decoded again."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_ids_T: np.ndarray) -> None:
        """The completion goes on from these ids."""
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._before = prompt_ids_T[-CONTEXT_IDS:].tolist()
        self._settled = ""
        self._ids: list[int] = []  # those whose text is not settled

    def add(self, token: int) -> None:
        """Take a token."""
        self._ids.append(token)
        if len(self._ids) >= 2 * SPAN:
            self._settle()

    @property
    def text(self) -> str:
        """The text so far, as it is if nothing follows."""
        return self._settled + self._decode(self._before, self._ids)

    @property
    def sure_text(self) -> str:
        """The text of the tokens before a run of bytes that may go on."""
        end = len(self._ids)
        while end and self._joins_bytes(self._ids[end - 1]):
            end -= 1
        return self._settled + self._decode(self._before, self._ids[:end])

    def _settle(self) -> None:
        """Part from the first tokens, where the rest says the same without them."""
        first, rest = self._ids[:-SPAN], self._ids[-SPAN:]
        if self._joins_bytes(first[-1]):
            return
        before = [*self._before, *first][-CONTEXT_IDS:]
        said, after = self._decode(self._before, first), self._decode(before, rest)
        if len(after) > SPAN // 2 and said + after == self._decode(self._before, self._ids):
            self._settled, self._before, self._ids = self._settled + said, before, rest

    def _decode(self, before: Sequence[int], ids: Sequence[int]) -> str:
        return decode_completion(self._tokenizer, np.array(before), ids)

    def _joins_bytes(self, token: int) -> bool:
        """Whether the token is a byte, or leaves no trace between two of them."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        return token in self._special or bool(piece and BYTE.fullmatch(piece))


class TextStream:
    """The text of one completion, piece by piece."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt_ids_T: np.ndarray, stops: Sequence[str]
    ) -> None:
        """`stops` are the texts before which the completion ends."""
        self.given = ""
        self._stops = tuple(stops)
        self._said = Detokeniser(tokenizer, prompt_ids_T)
        self._unsure = CLEANED if tokenizer.clean_up_tokenization_spaces else 0

    def add(self, token: int) -> str:
        """Take a token; the text that is certain now and was not before, perhaps none."""
        self._said.add(token)
        said = before_stop(self._said.sure_text, self._stops).rstrip(PART)
        said = said[: max(len(said) - self._unsure, 0)]
        return self._give(said[: len(said) - _begun(said, self._stops)])

    def rest(self) -> str:
        """The text that was held back; call it when the completion has ended."""
        return self._give(self.text)

    @property
    def text(self) -> str:
        """The text so far, as it is if nothing follows."""
        return before_stop(self._said.text, self._stops)

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
