"""Rendered rows to token ids and labels.

A prompt gets the ids that the tokenizer puts before a text (BOS) and none of those that it puts
after one: the response follows. Prompt and response are tokenised apart and joined as ids, so
that training sees exactly the prompt that generation starts from; the response is tokenised as
the continuation that it is.

Shapes: T tokens of one example, S supervised ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.core.batch import IGNORE
from weft.core.errors import InputError
from weft.data.config import DataConfig
from weft.data.plain import PlainTokenizer
from weft.data.rows import RowProblem
from weft.data.templates import Chat, Made, Rendered, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from weft.data.plain import RowTokenizer


@dataclass(frozen=True, eq=False)
class Encoded:
    """Ids and labels of a row, and the texts they stand for."""

    ids_T: np.ndarray
    labels_T: np.ndarray
    prompt_length: int
    prompt: str
    response: str

    @property
    def has_response(self) -> bool:
        """Whether a position after the prompt counts in the loss; the first one never does.

        A supervised prompt is not enough: a row whose response was cut off has nothing to teach.
        """
        return bool((self.labels_T[max(1, self.prompt_length) :] != IGNORE).any())

    def cut(self, length: int) -> Encoded:
        """The first `length` tokens; itself where it is no longer."""
        if len(self.ids_T) <= length:
            return self
        return replace(self, ids_T=self.ids_T[:length], labels_T=self.labels_T[:length])

    def padded(self, length: int) -> Encoded:
        """With a supervised id 0 at the end, where there is room for it; itself where not.

        mlx-lm fills the rows of a batch with zeros and counts one of them in the loss of a row.
        There is none after a row of `max_seq_length` tokens.
        """
        if len(self.ids_T) >= length:
            return self
        return replace(self, ids_T=np.append(self.ids_T, 0), labels_T=np.append(self.labels_T, 0))


@dataclass(frozen=True)
class Encoder:
    """A tokenizer with the choices of a run: rendered rows in, ids and labels out."""

    tokenizer: RowTokenizer
    head: tuple[int, ...]
    """What the tokenizer puts before a text."""
    eos: int | None
    """What is put after a response; None for nothing."""
    train_on_prompt: bool
    chat_template: str | None
    """Used instead of the tokenizer's own."""

    @classmethod
    def of(cls, tokenizer: RowTokenizer, config: DataConfig) -> Encoder:
        """The encoder that a configuration asks for."""
        eos = tokenizer.eos_token_id if config.append_eos else None
        if config.append_eos and eos is None:
            raise InputError(
                "the tokenizer has no end-of-sequence token to put after a response",
                hint="set `data.append_eos=false`",
            )
        template = read_template(config.chat_template) if config.chat_template else None
        return cls(tokenizer, head_ids(tokenizer), eos, config.train_on_prompt, template)

    def encode(self, rows: Sequence[Made]) -> list[Encoded | RowProblem]:
        """Every row, in order; all are of one kind, as one format makes them."""
        return ENCODERS[type(rows[0])](self, rows) if rows else []

    def pose(self, rows: Sequence[Made]) -> list[Encoded | RowProblem]:
        """The prompt of every row, in order, with nothing supervised."""
        return POSERS[type(rows[0])](self, rows) if rows else []

    def join(self, prompt: Sequence[int], completion: Sequence[int], texts: Rendered) -> Encoded:
        """One row of prompt and completion ids, with its labels."""
        ids_T = np.array([*prompt, *completion], dtype=np.int64)
        labels_T = ids_T.copy()
        if not self.train_on_prompt:
            labels_T[: len(prompt)] = IGNORE
        return Encoded(ids_T, labels_T, len(prompt), texts.prompt, texts.completion)


def encode_texts(tokenizer: RowTokenizer, texts: Sequence[str], **options: Any) -> list[list[int]]:
    """Ids of the texts alone; `options` are the tokenizer's."""
    if not texts:
        return []
    if isinstance(tokenizer, PlainTokenizer):
        assert not options, "only transformers' own has any"
        return _encode_fast(tokenizer, texts)
    if not options and _is_plain(tokenizer):
        return _encode_fast(tokenizer, texts)
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False, **options
    )
    return encoded["input_ids"]


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a call of the tokenizer does nothing with texts but what its backend does."""
    from transformers import PreTrainedTokenizerFast as Plain

    its, names = type(tokenizer), ("__call__", "_encode_plus")
    return all(getattr(its, name) is getattr(Plain, name, None) for name in names)


def _encode_fast(tokenizer: RowTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """As a call of the tokenizer, which takes twice the time: it makes offsets and masks, too."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return [each.ids for each in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def encode_completions(tokenizer: RowTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of the texts as they go on from a prompt: responses, candidates.

    Some tokenizers put a space before a text that they are given (SentencePiece, Metaspace). What
    goes on from a prompt must not get one, so it is tokenised after a sentinel, whose ids are then
    taken off. A text that merges with the sentinel is tokenised alone.
    """
    sentinel = _sentinel(tokenizer)
    if sentinel is None:
        return encode_texts(tokenizer, texts)
    before, *wholes = encode_texts(tokenizer, [sentinel, *(sentinel + text for text in texts)])
    kept = [whole[: len(before)] == before for whole in wholes]
    merged = [text for text, is_kept in zip(texts, kept, strict=True) if not is_kept]
    alone = iter(encode_texts(tokenizer, merged))
    return [
        whole[len(before) :] if is_kept else next(alone)
        for whole, is_kept in zip(wholes, kept, strict=True)
    ]


def decode_completion(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: np.ndarray, ids: Sequence[int]
) -> str:
    """The text of a completion as it goes on from its prompt; special tokens are left out.

    Some tokenizers drop the space before the first word of a text; after a prompt it must stay.
    """
    before = prompt_ids[-CONTEXT_IDS:].tolist()
    prompt = tokenizer.decode(before, skip_special_tokens=True)
    whole = tokenizer.decode([*before, *ids], skip_special_tokens=True)
    if not whole.startswith(prompt):  # the prompt ends within a character
        return tokenizer.decode(list(ids), skip_special_tokens=True)
    return whole[len(prompt) :]


CONTEXT_IDS = 4
"""Tokens of the prompt that are decoded with a completion."""

SENTINELS = ("\n", ".")
"""Texts that rarely merge with what follows, best first."""


def _sentinel(tokenizer: RowTokenizer) -> str | None:
    """What to put before a text so that it goes on; None where a text alone has the same ids."""
    for sentinel in SENTINELS:
        alone, before, whole = encode_texts(tokenizer, ["x", sentinel, f"{sentinel}x"])
        known = before and tokenizer.unk_token_id not in before
        if known and whole[: len(before)] == before:
            return None if whole[len(before) :] == alone else sentinel
    return None


def _encode_rendered(encoder: Encoder, rows: Sequence[Rendered]) -> list[Encoded | RowProblem]:
    """A response goes on from its prompt; without a prompt it begins as any text does."""
    prompts = encode_texts(encoder.tokenizer, [row.prompt for row in rows])
    begun = iter(encode_texts(encoder.tokenizer, [r.completion for r in rows if not r.prompt]))
    going_on = iter(encode_completions(encoder.tokenizer, [r.completion for r in rows if r.prompt]))
    completions = [next(going_on if row.prompt else begun) for row in rows]
    end = [] if encoder.eos is None else [encoder.eos]
    return [
        encoder.join(
            [*encoder.head, *prompt],
            completion if completion[-1:] == end else completion + end,
            row,
        )
        for row, prompt, completion in zip(rows, prompts, completions, strict=True)
    ]


def _encode_chats(encoder: Encoder, rows: Sequence[Chat]) -> list[Encoded | RowProblem]:
    """The ids of the template as they are: it brings its own BOS, and usually its own EOS."""
    texts = [_apply_template(encoder, row) for row in rows]
    good = [each for each in texts if not isinstance(each, RowProblem)]
    prompts = iter(encode_texts(encoder.tokenizer, [prompt for prompt, _ in good]))
    wholes = iter(encode_texts(encoder.tokenizer, [whole for _, whole in good]))
    return [
        each
        if isinstance(each, RowProblem)
        else _join_chat(encoder, row, each[0], next(prompts), next(wholes))
        for row, each in zip(rows, texts, strict=True)
    ]


def _pose_rendered(encoder: Encoder, rows: Sequence[Rendered]) -> list[Encoded | RowProblem]:
    ids = encode_texts(encoder.tokenizer, [row.prompt for row in rows])
    return [
        _posed([*encoder.head, *prompt], row.prompt) for row, prompt in zip(rows, ids, strict=True)
    ]


def _pose_chats(encoder: Encoder, rows: Sequence[Chat]) -> list[Encoded | RowProblem]:
    """The ids of the template up to where the answer begins."""
    texts = [_apply_template(encoder, row, answered=False) for row in rows]
    good = [each[0] for each in texts if not isinstance(each, RowProblem)]
    ids = iter(encode_texts(encoder.tokenizer, good))
    return [each if isinstance(each, RowProblem) else _posed(next(ids), each[0]) for each in texts]


def _pose_tokens(encoder: Encoder, rows: Sequence[Tokens]) -> list[Encoded | RowProblem]:
    """The ids before the first one that is supervised."""
    checked = [_check_tokens(encoder, row.ids_T, row.labels_T) for row in rows]
    return [
        each
        if isinstance(each, RowProblem)
        else _posed(each.ids_T[: each.prompt_length].tolist(), each.prompt)
        for each in checked
    ]


def _posed(ids: Sequence[int], prompt: str) -> Encoded | RowProblem:
    if not ids:
        return RowProblem("there is no prompt to go on from")
    return Encoded(np.array(ids, np.int64), np.full(len(ids), IGNORE), len(ids), prompt, "")


def _apply_template(
    encoder: Encoder, row: Chat, *, answered: bool = True
) -> tuple[str, str] | RowProblem:
    """The text up to the answer, and that of the whole conversation."""
    if not (encoder.chat_template or encoder.tokenizer.chat_template):
        raise InputError(
            "a conversation needs a chat template, and the tokenizer has none",
            hint="use a model with a chat template, or give a Jinja file: `data.chat_template`",
        )

    def apply(messages: Sequence[dict[str, str]], *, ask: bool) -> str:
        return encoder.tokenizer.apply_chat_template(
            list(messages),
            chat_template=encoder.chat_template,
            add_generation_prompt=ask,
            tokenize=False,
        )

    try:
        prompt = apply(row.messages[:-1], ask=True)
        return prompt, apply(row.messages, ask=False) if answered else prompt
    except Exception as e:  # a template is a program, and may fail as any does
        return RowProblem(template_problem(e))


def template_problem(error: Exception) -> str:
    """What a chat template says against messages, or how it fails."""
    from jinja2 import TemplateError

    kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
    return f"the chat template refuses the messages: {kind}{error}"


def _join_chat(
    encoder: Encoder, row: Chat, prompt_text: str, prompt: list[int], whole: list[int]
) -> Encoded | RowProblem:
    if whole[: len(prompt)] != prompt:
        return RowProblem(
            "the chat template does not fit training: the tokens of the prompt are not the "
            "beginning of the tokens of the whole conversation"
        )
    answer = whole[len(prompt) :]
    if encoder.eos is not None and encoder.eos not in answer:
        answer = [*answer, encoder.eos]
    return encoder.join(prompt, answer, Rendered(prompt_text, row.messages[-1]["content"]))


def _encode_tokens(encoder: Encoder, rows: Sequence[Tokens]) -> list[Encoded | RowProblem]:
    """Ids and labels as they are."""
    return [_check_tokens(encoder, row.ids_T, row.labels_T) for row in rows]


def _check_tokens(
    encoder: Encoder, ids_T: np.ndarray, labels_T: np.ndarray
) -> Encoded | RowProblem:
    size = len(encoder.tokenizer)
    labels_S = labels_T[labels_T != IGNORE]
    for name, values in (("input_ids", ids_T), ("labels", labels_S)):
        outside = values[(values < 0) | (values >= size)]
        if len(outside):
            return RowProblem(f"`{name}` has {outside[0]}: the tokenizer's ids are 0 to {size - 1}")
    start = _first_supervised(labels_T)
    prompt, response = (encoder.tokenizer.decode(x.tolist()) for x in (ids_T[:start], labels_S))
    return Encoded(ids_T, labels_T, start, prompt, response)


ENCODERS: dict[type, Callable[[Encoder, Sequence[Any]], list[Encoded | RowProblem]]] = {
    Rendered: _encode_rendered,
    Chat: _encode_chats,
    Tokens: _encode_tokens,
}


POSERS: dict[type, Callable[[Encoder, Sequence[Any]], list[Encoded | RowProblem]]] = {
    Rendered: _pose_rendered,
    Chat: _pose_chats,
    Tokens: _pose_tokens,
}


def head_ids(tokenizer: RowTokenizer) -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text, found by trying."""
    tried = tokenizer("a", return_special_tokens_mask=True)
    added = tried["special_tokens_mask"]
    return tuple(tried["input_ids"][: added.index(0) if 0 in added else 0])


def _first_supervised(labels_T: np.ndarray) -> int:
    supervised = np.flatnonzero(labels_T != IGNORE)
    return int(supervised[0]) if len(supervised) else len(labels_T)


def read_template(path: Path, option: str = "`data.chat_template`") -> str:
    """The Jinja text of a file that `option` names."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"cannot read {option} {path}: {e}") from e
