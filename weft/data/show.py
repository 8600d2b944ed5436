"""Examples token by token, so that a person can see what is supervised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from weft.core.batch import IGNORE
from weft.data.split import Item, Split

if TYPE_CHECKING:
    from weft.data.plain import RowTokenizer

MARK = "*"
SUPERVISED = f"{MARK} supervised: the model is trained to predict this token from those before it"

GRADED = "prompts: what the model says after them is graded"


def show(split: Split, tokenizer: RowTokenizer, k: int, *, choosing: bool = False) -> str:
    """The first `k` examples of a split as plain text, one token a line.

    `choosing`: the objective is the choice between candidates, which reads no other token of a
    response.
    """
    supervised = SUPERVISED if split.counts["supervised_tokens"] else GRADED
    lines = [_chosen(split) if choosing else supervised]
    for item in split.items[:k]:
        lines += ["", *_lines(split, item, tokenizer, choosing)]
    return "\n".join(lines)


def _chosen(split: Split) -> str:
    words = ", ".join(repr(candidate.text) for candidate in split.candidates)
    return f"{MARK} the right one of the candidates {words}; what comes after it is not read"


def token_text(tokenizer: RowTokenizer, token: int) -> str:
    """A token as quoted text; part of a character is shown in the tokenizer's own notation."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None:
        return "(not in the vocabulary)"
    if piece.startswith("\u2581"):  # SentencePiece writes a space like this, and decode drops it
        return repr(piece.replace("\u2581", " "))
    text = tokenizer.decode([token])
    return f"{piece} (part of a character)" if "\ufffd" in text else repr(text)


def _lines(split: Split, item: Item, tokenizer: RowTokenizer, choosing: bool) -> Iterator[str]:
    example, end = item.example, len(item.example.ids_T)
    cut = f", cut to {split.max_length}" if item.truncated else ""
    counted = f", {example.supervised} supervised"
    if choosing and example.choice is not None:
        end = item.prompt_length + len(example.choice.candidates[example.choice.right])
        counted = ""
    yield f"{example.id}: {example.tokens} tokens{counted}{cut}"
    rows = zip(example.ids_T.tolist(), example.labels_T.tolist(), strict=True)
    for position, (token, label) in enumerate(rows):
        if position == item.prompt_length and position > 0:
            yield "        ---- response ----"
        mark = " " if label == IGNORE or position == 0 or position >= end else MARK
        note = "  (end of sequence)" if token == tokenizer.eos_token_id else ""
        if label not in (IGNORE, token):
            note += f"  (label {label} {token_text(tokenizer, label)})"
        yield f"{position:5} {mark} {token:7}  {token_text(tokenizer, token)}{note}"
