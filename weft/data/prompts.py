"""What people ask a model to go on from, to texts and ids exactly as the model sees them.

A prompt is plain text, which a completion continues (raw), or a conversation, which the chat
template of the tokenizer puts into words. Plain text is the default for a `prompt`, the template
for `messages`.

Shapes: T tokens of one prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from weft.core.errors import InputError, did_you_mean
from weft.data.fields import text
from weft.data.readers import READERS, read_rows
from weft.data.rows import BadRow, Row, RowProblem
from weft.data.tokens import encode_texts, head_ids, read_template, template_problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_OPTIONS = {
    "add_special_tokens": "put the tokens that the tokenizer begins a text with (BOS) in front",
    "split_special_tokens": "special tokens that a prompt spells out are ordinary text",
}
"""What may be said to the tokenizer; a chat template has variables of its own."""

SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Ask:
    """A prompt as it was given: text, or the messages of a conversation."""

    id: str
    said: str | tuple[dict[str, str], ...]


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as the model sees it."""

    id: str
    text: str
    """With every special token spelled out."""
    ids_T: np.ndarray
    mode: Literal["raw", "chat", "row"]
    """Plain text, a conversation in the words of a chat template, or as a row of data says."""
    reference: str | None = None
    """The response that is expected, where the prompt is a row of data."""


@dataclass(frozen=True)
class Style:
    """How what was asked becomes a prompt. `chat` is None for: as it was given."""

    chat: bool | None = None
    system: str | None = None
    chat_template: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What was chosen, for people and for `samples.jsonl`."""
        template = None if self.chat_template is None else str(self.chat_template)
        return {
            "system": self.system,
            "chat_template": template,
            "tokenizer_options": dict(self.options),
        }


def asked(texts: Sequence[str]) -> list[Ask]:
    """Prompts out of texts."""
    return [Ask(f"prompt:{number}", said) for number, said in enumerate(texts, 1)]


def conversations(given: Sequence[Sequence[Mapping[str, str]]]) -> list[Ask]:
    """Prompts out of messages {role, content}; `InputError` for what is no conversation."""
    asks = []
    for number, messages in enumerate(given, 1):
        try:
            asks.append(Ask(f"messages:{number}", tuple(_messages(list(messages)))))
        except RowProblem as problem:
            raise InputError(f"conversation {number}: {problem}") from None
    return asks


def read_asks(path: Path) -> tuple[list[Ask], tuple[str, ...]]:
    """The prompts of a file, and what there is to say about it.

    Each row of a .jsonl, .json, .parquet or .tsv file has `prompt` (text) or `messages` (a
    conversation that waits for an answer), and perhaps `id`; other fields are left alone. Any
    other file is plain text with one prompt a line. Raises `InputError` with every bad row.
    """
    asks, bad, blank = (_rows if path.suffix in READERS else _plain_lines)(path)
    if bad:
        lines = [f"  {problem}" for problem in bad[:SHOWN_PROBLEMS]]
        more = len(bad) - SHOWN_PROBLEMS
        lines += [f"  and {more} more"] if more > 0 else []
        count = "1 prompt" if len(bad) == 1 else f"{len(bad)} prompts"
        raise InputError(
            "\n".join([f"{count} cannot be used:", *lines]),
            hint="a row has `prompt` or `messages`; for rows of training data use --data and --row",
        )
    if not asks:
        raise InputError(f"{path} has no prompts", hint="one a line, or JSON rows with `prompt`")
    return asks, (f"{path}: blank lines that are no prompts: {blank}",) if blank else ()


def encode_asks(
    tokenizer: PreTrainedTokenizerBase, asks: Sequence[Ask], style: Style = Style()
) -> list[Prompt]:
    """Prompts as the model sees them: those of training rows get the ids that training gave them.

    Raises `InputError` for a conversation that is to be raw, a missing or refusing chat template,
    and for options that neither the tokenizer nor the template has.
    """
    template = _template(tokenizer, asks, style)
    variables = _variables(template, style)
    head = head_ids(tokenizer)
    spelled = "".join(tokenizer.convert_ids_to_tokens(list(head)))
    split = bool(style.options.get("split_special_tokens", False))
    prompts = []
    for ask in asks:
        is_chat = _is_chat(ask, style)
        said = _converse(tokenizer, ask, style, template, variables) if is_chat else str(ask.said)
        _check_text(said, ask.id)
        with_head = bool(style.options.get("add_special_tokens", not is_chat))
        (ids,) = encode_texts(tokenizer, [said], split_special_tokens=split)
        ids_T = np.array([*(head if with_head else ()), *ids], dtype=np.int64)
        mode: Literal["raw", "chat"] = "chat" if is_chat else "raw"
        prompts.append(Prompt(ask.id, spelled + said if with_head else said, ids_T, mode))
    return prompts


def _check_text(said: str, name: str) -> None:
    try:
        said.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} is not text: character {error.start + 1} is half a surrogate pair",
            hint="that is how bytes that are not UTF-8 arrive from a command line",
        ) from None


def _is_chat(ask: Ask, style: Style) -> bool:
    return not isinstance(ask.said, str) if style.chat is None else style.chat


def _template(tokenizer: PreTrainedTokenizerBase, asks: Sequence[Ask], style: Style) -> str | None:
    """The Jinja text that conversations are put into; None where there is no conversation."""
    chats = [ask for ask in asks if _is_chat(ask, style)]
    if style.chat is False and (given := [a for a in asks if not isinstance(a.said, str)]):
        raise InputError(
            f"{given[0].id} is a conversation (`messages`), and prompts are to be raw",
            hint="leave out --raw, or give its text as `prompt`",
        )
    if not chats:
        for name, value in (("--system", style.system), ("--chat-template", style.chat_template)):
            if value is not None:
                raise InputError(
                    f"{name} is for conversations, and the prompts are raw text",
                    hint="add --chat, or give rows with `messages`",
                )
        return None
    if style.chat_template is not None:
        return read_template(style.chat_template, "--chat-template")
    if not tokenizer.chat_template:
        raise InputError(
            "a conversation needs a chat template, and the tokenizer has none",
            hint="give a Jinja file with --chat-template, or go on from plain text with --raw",
        )
    return tokenizer.get_chat_template()


def _variables(template: str | None, style: Style) -> dict[str, Any]:
    """The options that are variables of the chat template; `InputError` for those of nobody."""
    from jinja2 import Environment, TemplateError, meta

    for name in TOKENIZER_OPTIONS:
        if type(style.options.get(name, True)) is not bool:
            raise InputError(f"tokenizer option {name}: true or false, is {style.options[name]!r}")
    rest = {name: v for name, v in style.options.items() if name not in TOKENIZER_OPTIONS}
    if not rest:
        return rest
    used: set[str] = set()
    if template is not None:
        try:
            environment = Environment(extensions=["jinja2.ext.loopcontrols"])
            used = meta.find_undeclared_variables(environment.parse(template))
        except TemplateError:  # the tokenizer's own environment knows more; applying it will tell
            return rest
    used -= {"messages", "add_generation_prompt"}
    known = [*TOKENIZER_OPTIONS, *sorted(used)]
    for name in rest:
        if name not in known:
            raise InputError(
                f"there is no tokenizer option `{name}`",
                hint=did_you_mean(name, known)
                or f"there are {', '.join(known)}"
                + ("" if template else "; with --chat also the variables of the chat template"),
            )
    return rest


def _converse(
    tokenizer: PreTrainedTokenizerBase,
    ask: Ask,
    style: Style,
    template: str | None,
    variables: Mapping[str, Any],
) -> str:
    """The conversation in the words of the template, up to where the answer begins."""
    messages = (
        [{"role": "user", "content": ask.said}] if isinstance(ask.said, str) else list(ask.said)
    )
    if style.system is not None:
        if messages[0]["role"] == "system":
            raise InputError(f"{ask.id} has a system message of its own", hint="leave out --system")
        messages = [{"role": "system", "content": style.system}, *messages]
    try:
        said = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            add_generation_prompt=True,
            tokenize=False,
            **variables,
        )
    except Exception as error:  # a template is a program, and may fail as any does
        raise InputError(f"{ask.id}: {template_problem(error)}") from None
    return str(said)


Found = tuple[list[Ask], list[BadRow], int]
"""Prompts, what cannot be used, and the number of blank lines."""


def _rows(path: Path) -> Found:
    reading = read_rows(path, "prompts")
    asks, bad = [], list(reading.bad)
    for row in reading.rows:
        try:
            asks.append(_of_row(row))
        except RowProblem as problem:
            bad.append(row.bad(problem))
    return asks, sorted(bad), reading.blank


def _of_row(row: Row) -> Ask:
    name = row.value.get("id", f"prompt:{row.line}")
    if "prompt" in row.value:
        return Ask(str(name), text(row.value, "prompt"))
    if "messages" in row.value:
        return Ask(str(name), tuple(_messages(row.value["messages"])))
    fields = ", ".join(row.value) or "(none)"
    raise RowProblem(f"neither `prompt` nor `messages` (found: {fields})")


def _messages(turns: object) -> Iterator[dict[str, str]]:
    if not isinstance(turns, list) or not turns:
        raise RowProblem("`messages` must be a list of {role, content}")
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise RowProblem(f"`messages[{number}]` must be an object")
        yield {name: text(turn, name, f"messages[{number}].") for name in ("role", "content")}
    if turns[-1]["role"] == "assistant":
        raise RowProblem("the last of `messages` is the assistant's: there is nothing to answer")


def _plain_lines(path: Path) -> Found:
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    asks, bad = [], []
    for number, line in enumerate(lines, 1):
        try:
            said = line.decode()
        except UnicodeDecodeError as error:
            wrong = f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}"
            bad.append(BadRow(str(path), number, wrong))
            continue
        if said.strip():
            asks.append(Ask(f"prompt:{number}", said))
    return asks, bad, len(lines) - len(asks) - len(bad)
