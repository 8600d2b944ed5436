"""The accepted row formats: which fields they have, and what prompt and response they make.

A format checks a row strictly and raises `RowProblem` with the reason; it knows no tokenizer.

Shapes: T tokens of one example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from weft.core.errors import InputError
from weft.data import choices, graded, sql
from weft.data.fields import field as field_of
from weft.data.fields import kind_of, names_of, response, text
from weft.data.rows import Row, RowProblem


@dataclass(frozen=True)
class Rendered:
    """A prompt, and the response that is to follow it directly."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Chat:
    """A conversation that ends with the assistant's turn, for the tokenizer's chat template."""

    messages: tuple[dict[str, str], ...]


@dataclass(frozen=True, eq=False)
class Tokens:
    """A row that is tokenised already."""

    ids_T: np.ndarray
    labels_T: np.ndarray


Made = Rendered | Chat | Tokens
"""What a format makes of a row."""


Judge = Callable[[str, str, str], bool]
"""Whether a generated text answers a prompt as its reference does: (prompt, reference, text)."""


Ask = Callable[[dict[str, Any]], tuple[str, int]]
"""The prompt of a row, and the number of its label."""


@dataclass(frozen=True)
class Format:
    """A kind of row, and how a model's answer to one is judged."""

    name: str
    fields: tuple[str, ...]
    """Fields that every row has; together they identify the format."""
    render: Callable[[dict[str, Any]], Made]
    candidates: tuple[str, ...] = ()
    """All possible responses, where they are few: label i has candidate i."""
    judges: Mapping[str, Judge] = field(default_factory=dict)
    """How generated responses are judged, by the name of the metric; the first one is the main."""
    recognises: Callable[[dict[str, Any]], bool] | None = None
    """Whether a row looks like this format, where its fields alone do not tell."""
    other_fields: tuple[str, ...] = ()
    """Fields that rows may have instead."""
    telling: Callable[[dict[str, Any]], bool] | None = None
    """Whether a row's label leaves no doubt, where rows of other kinds have the same fields."""
    ask: Ask | None = None
    """The prompt of a row and the number of its label, where there are candidates."""
    pose: Callable[[dict[str, Any]], Made] | None = None
    """What `render` makes of a row, where it may lack the response; nothing follows the prompt."""
    posed_by: tuple[str, ...] = ()
    """Fields that identify rows which lack the response."""

    @property
    def accepted(self) -> str:
        """The fields, for people."""
        return " or ".join(names_of(each) for each in (self.fields, self.other_fields) if each)

    def has_fields(self, row: Row) -> bool:
        """Whether a row has the fields of this format."""
        named = (each for each in (self.fields, self.other_fields) if each)
        return any(set(each) <= row.value.keys() for each in named)

    def told_by(self, rows: Sequence[Row]) -> Row | None:
        """The row that shows rows to be of this format, if there is one."""
        if not self.has_fields(rows[0]):
            return None
        if self.recognises is None:
            return rows[0]
        return next((row for row in rows if self.recognises(row.value)), None)

    def choosing(self, words: Sequence[str]) -> Format:
        """The same with other words as candidates, in the order of the labels.

        A space that this format's own candidates begin with is put before them.
        Raises `InputError` where there are not as many candidates.
        """
        own = self.candidates
        if not own:
            raise InputError(
                f"`data.verbalizers` is given, and format {self.name} has no candidates",
                hint=f"formats that have: {names_of(f.name for f in CHOICES)}",
            )
        if len(words) != len(own):
            raise InputError(
                f"format {self.name} has {len(own)} labels, and `data.verbalizers` {len(words)}: "
                f"{names_of(words)}",
                hint=f"give a word for each label in order, as {names_of(c.strip() for c in own)}",
            )
        assert self.ask is not None  # there are candidates
        space = own[0].removesuffix(own[0].lstrip())
        candidates = tuple(space + word for word in words)
        return replace(self, candidates=candidates, render=_answer(self.ask, candidates))


# The wording is that of the Stanford Alpaca project: models trained on it expect it to the letter.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def render_text(row: dict[str, Any]) -> Rendered:
    """Plain text: no prompt, everything is supervised."""
    return Rendered("", response(row, "text"))


def render_prompt_completion(row: dict[str, Any]) -> Rendered:
    """`prompt` and `completion`, joined as they are."""
    return Rendered(text(row, "prompt"), response(row, "completion"))


def render_alpaca(row: dict[str, Any]) -> Rendered:
    """`instruction`, `output` and perhaps `input`, in the published Alpaca template."""
    instruction = text(row, "instruction")
    context = text(row, "input") if row.get("input") is not None else ""
    template = ALPACA_WITH_INPUT if context else ALPACA_WITHOUT_INPUT
    prompt = template.format(instruction=instruction, input=context)
    return Rendered(prompt, response(row, "output"))


def pose_prompt(row: dict[str, Any]) -> Rendered:
    """`prompt` alone."""
    return Rendered(text(row, "prompt"), "")


def pose_alpaca(row: dict[str, Any]) -> Rendered:
    """`instruction` and perhaps `input` alone, in the template."""
    return replace(render_alpaca({**row, "output": "."}), completion="")


def pose_messages(row: dict[str, Any]) -> Chat:
    """The turns up to the one that the assistant is to take."""
    turns = _turns(row)
    if turns and turns[-1]["role"] == "assistant":
        del turns[-1]
    if not turns:
        raise RowProblem("`messages` needs a turn to answer")
    return Chat((*turns, {"role": "assistant", "content": ""}))


def render_messages(row: dict[str, Any]) -> Chat:
    """`messages`: a list of {role, content} that ends with the assistant's answer."""
    turns = _turns(row)
    if len(turns) < 2:
        raise RowProblem("`messages` needs a turn to answer and the assistant's answer")
    last = len(turns) - 1
    if turns[last]["role"] != "assistant":
        raise RowProblem(
            f"the last of `messages` must be the assistant's, its role is {turns[last]['role']!r}"
        )
    response(turns[last], "content", where=f"messages[{last}].")
    return Chat(tuple(turns))


def render_countdown(row: dict[str, Any]) -> Rendered:
    """Numbers and a target as the prompt, and the stored solution as the response."""
    return Rendered(graded.ask_countdown(row), graded.answer_countdown(row))


def render_conciseness(row: dict[str, Any]) -> Rendered:
    """`prompt` and its answer, as they are."""
    return Rendered(graded.ask_conciseness(row), graded.answer_conciseness(row))


def render_tables(row: dict[str, Any]) -> Rendered:
    """A question about a table up to "A: " as prompt, and its query, which the table can answer."""
    prompt, query = sql.divide(response(row, "text"))
    sql.Table.of(prompt).parse(query)
    return Rendered(prompt, query)


def render_tokenized(row: dict[str, Any]) -> Tokens:
    """`input_ids`, and `labels` of the same length (without them every token is supervised).

    An `attention_mask` says which tokens are padding, at either end: they are left out.
    """
    ids_T = _integers(row, "input_ids")
    labels_T = _aligned(row, "labels", ids_T) if row.get("labels") is not None else ids_T
    if row.get("attention_mask") is None:
        return Tokens(ids_T, labels_T)
    kept = _attended(_aligned(row, "attention_mask", ids_T))
    return Tokens(ids_T[kept], labels_T[kept])


def _answer(ask: Ask, candidates: Sequence[str]) -> Callable[[dict[str, Any]], Rendered]:
    """Rows as a prompt and the candidate of their label."""

    def render(row: dict[str, Any]) -> Rendered:
        prompt, label = ask(row)
        return Rendered(prompt, candidates[label])

    return render


def _choice(
    name: str, fields: tuple[str, ...], ask: Ask, candidates: tuple[str, ...], **more: Any
) -> Format:
    return Format(name, fields, _answer(ask, candidates), candidates, ask=ask, **more)


CHOICES = (  # no space after a line's end
    _choice("sst2", ("sentence", "label"), choices.ask_sst2, (" terrible", " great")),
    _choice(
        "boolq",
        ("passage", "question", "label"),
        choices.ask_boolq,
        ("No", "Yes"),
        other_fields=("passage", "question", "answer"),
    ),
    _choice(
        "cb",
        ("premise", "hypothesis", "label"),
        choices.ask_cb,
        ("Yes", "No", "Maybe"),
        telling=choices.tells_cb,
    ),
    _choice(
        "rte",
        ("premise", "hypothesis", "label"),
        choices.ask_rte,
        ("Yes", "No"),
        other_fields=("sentence1", "sentence2", "label"),
        telling=choices.tells_rte,
    ),
)
"""The formats whose responses are candidates, in the order in which `auto` tries them."""

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (  # in the order in which `auto` tries them
        Format("tokenized", ("input_ids",), render_tokenized),
        Format("messages", ("messages",), render_messages, pose=pose_messages),
        Format(
            "alpaca",
            ("instruction", "output"),
            render_alpaca,
            pose=pose_alpaca,
            posed_by=("instruction",),
        ),
        Format(
            "prompt_completion",
            ("prompt", "completion"),
            render_prompt_completion,
            pose=pose_prompt,
            posed_by=("prompt",),
        ),
        Format(
            "countdown",
            ("numbers", "target"),
            render_countdown,
            other_fields=("nums", "target"),
            pose=lambda row: Rendered(graded.ask_countdown(row), ""),
        ),
        Format(
            "conciseness",
            ("prompt", "answer"),
            render_conciseness,
            recognises=lambda row: False,  # rows of many kinds have these fields
            other_fields=("prompt", "target"),
            pose=lambda row: Rendered(graded.ask_conciseness(row), ""),
        ),
        *CHOICES,
        Format(
            "tables",
            ("text",),
            render_tables,
            judges={"exact_match": sql.exact_match, "logical_form": sql.logical_form},
            recognises=lambda row: sql.looks_like_question(row.get("text")),
        ),
        Format("text", ("text",), render_text),
    )
}


def detect(rows: Sequence[Row], *, responses: bool = True) -> tuple[Format, Row]:
    """The format that the rows are of, and the row that shows it.

    Without `responses` the fields of a prompt are enough.
    """
    possible = []
    for candidate in FORMATS.values():
        if row := candidate.told_by(rows):
            if candidate.telling is None:
                return candidate, row
            if told := next((row for row in rows if candidate.telling(row.value)), None):
                return candidate, told
            possible.append(candidate.name)
    row = rows[0]
    for candidate in () if responses or possible else FORMATS.values():
        if candidate.posed_by and set(candidate.posed_by) <= row.value.keys():
            return candidate, row
    found = names_of(row.value) or "(none)"
    if possible:
        raise InputError(
            f"{row.file}:{row.line}: the fields {found} are those of several tasks, and no label "
            "tells which",
            hint=f"set `data.format` to {' or '.join(possible)}",
        )
    if unguessed := [f.name for f in FORMATS.values() if f.has_fields(row)]:
        raise InputError(
            f"{row.file}:{row.line}: rows of many kinds have the fields {found}",
            hint=f"if these are of format {' or '.join(unguessed)}, say so: `data.format`",
        )
    accepted = "; ".join(f"{f.name}: {f.accepted}" for f in FORMATS.values())
    raise InputError(
        f"{row.file}:{row.line}: no format has the fields {found}",
        hint=f"the accepted fields are {accepted}",
    )


def _turns(row: dict[str, Any]) -> list[dict[str, str]]:
    turns = _list(row, "messages")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise RowProblem(f"`messages[{i}]` must be an object, is {kind_of(turn)}")
        for name in ("role", "content"):
            text(turn, name, where=f"messages[{i}].")
    return [{"role": t["role"], "content": t["content"]} for t in turns]


def _list(row: dict[str, Any], name: str) -> list[Any]:
    value = field_of(row, name)
    if not isinstance(value, list):
        raise RowProblem(f"field `{name}` must be a list, is {kind_of(value)}")
    return value


def _integers(row: dict[str, Any], name: str) -> np.ndarray:
    values = _list(row, name)
    if not set(map(type, values)) <= {int}:
        i, wrong = next((i, v) for i, v in enumerate(values) if type(v) is not int)
        raise RowProblem(f"`{name}[{i}]` must be a whole number, is {kind_of(wrong)}")
    try:
        return np.array(values, dtype=np.int64)
    except OverflowError:
        raise RowProblem(f"`{name}` has a number that is no token id: {max(values)}") from None


def _aligned(row: dict[str, Any], name: str, ids_T: np.ndarray) -> np.ndarray:
    """Whole numbers, one for each token."""
    values_T = _integers(row, name)
    if len(values_T) != len(ids_T):
        raise RowProblem(f"`input_ids` has {len(ids_T)} tokens and `{name}` has {len(values_T)}")
    return values_T


def _attended(mask_T: np.ndarray) -> slice:
    """The one stretch of tokens that a mask of 0 and 1 lets through."""
    wrong = mask_T[(mask_T != 0) & (mask_T != 1)]
    if len(wrong):
        raise RowProblem(f"`attention_mask` must hold 0 and 1 only, has {wrong[0]}")
    ones = np.flatnonzero(mask_T)
    if not len(ones):
        raise RowProblem("`attention_mask` is 0 for every token")
    start, stop = int(ones[0]), int(ones[-1]) + 1
    if stop - start != len(ones):
        hole = start + int(np.flatnonzero(mask_T[start:] == 0)[0])
        raise RowProblem(
            f"`attention_mask[{hole}]` is 0 between ones: only padding at the ends can be left out"
        )
    return slice(start, stop)
