"""Rows whose answer is one of a few words: the published prompts, and what their labels mean.

Each function gives the prompt of a row and the number of its label. The wording is that of MeZO
(arXiv 2305.17333), to the letter: results are compared with it.
"""

from __future__ import annotations

from typing import Any

from weft.data.fields import field, response
from weft.data.rows import RowProblem

Asked = tuple[str, int]
"""A prompt, and the number of the right answer."""

SENTIMENT = ("negative", "positive")
ENTAILMENT = ("entailment", "not_entailment")
INFERENCE = ("entailment", "contradiction", "neutral")
TRUTH = ("false", "true")
SHOWN = 40
"""Characters of a wrong label that are shown."""


def ask_sst2(row: dict[str, Any]) -> Asked:
    """`sentence` and `label`: the sentiment as the word that completes "It was"."""
    return f"{response(row, 'sentence').strip()} It was", label_of(row, SENTIMENT)


def ask_rte(row: dict[str, Any]) -> Asked:
    """`premise` and `hypothesis`, or `sentence1` and `sentence2`: does the second follow?"""
    first, second = ("premise", "hypothesis") if "premise" in row else ("sentence1", "sentence2")
    prompt = (
        f"{response(row, first)}\n"
        f'Does this mean that "{response(row, second)}" is true? Yes or No?\n'
    )
    return prompt, label_of(row, ENTAILMENT)


def ask_cb(row: dict[str, Any]) -> Asked:
    """`premise` and `hypothesis`: does it follow, not follow, or is it left open?"""
    prompt = (
        f"Suppose {response(row, 'premise')} "
        f'Can we infer that "{response(row, "hypothesis")}"? Yes, No, or Maybe?\n'
    )
    return prompt, label_of(row, INFERENCE)


def ask_boolq(row: dict[str, Any]) -> Asked:
    """`passage` and `question`, and the truth as `label` or as `answer`."""
    question = response(row, "question").strip().rstrip("?").rstrip()
    if not question:
        raise RowProblem("field `question` is nothing but a question mark")
    prompt = f"{response(row, 'passage')} {question[0].upper()}{question[1:]}?\n"
    return prompt, label_of(row, TRUTH, "label" if "label" in row else "answer")


def tells_rte(row: dict[str, Any]) -> bool:
    """Words tell; numbers do under `premise` only: other tasks have `sentence1` and mean others."""
    label = row.get("label")
    return label in ENTAILMENT or ("premise" in row and str(label) in ("0", "1"))


def tells_cb(row: dict[str, Any]) -> bool:
    """Words tell; numbers do not: other tasks of three answers number them otherwise."""
    return row.get("label") in INFERENCE[1:]


def label_of(row: dict[str, Any], words: tuple[str, ...], name: str = "label") -> int:
    """The number of a label: itself, or one of `words` in the order of their numbers."""
    value = field(row, name)
    if value is None or value in (-1, "-1", ""):
        raise RowProblem(
            f"field `{name}` is {'null' if value is None else repr(value)}: the row has no label, "
            "as the public test rows of GLUE and SuperGLUE"
        )
    numbers = {each: i for i, word in enumerate(words) for each in (str(i), word)}
    if isinstance(value, bool) or type(value) is int or isinstance(value, str):
        number = numbers.get(str(value).strip().casefold())
        if number is not None:
            return number
    meant = [f"{i} ({word})" for i, word in enumerate(words)]
    given = repr(value) if len(repr(value)) <= SHOWN else f"{repr(value)[:SHOWN]}..."
    raise RowProblem(f"field `{name}` must be {', '.join(meant[:-1])} or {meant[-1]}, is {given}")
