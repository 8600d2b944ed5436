"""Rows whose answer is one of a few words: MeZO's prompts, letter by letter, and labels."""

from __future__ import annotations

from typing import Any

import pytest

from weft.core.errors import InputError
from weft.data.rows import Row, RowProblem
from weft.data.templates import CHOICES, FORMATS, Rendered, detect

PAIR = {"premise": "It rained.", "hypothesis": "It was wet."}
SENTENCES = {"sentence1": "It rained.", "sentence2": "It was wet."}
RTE = 'It rained.\nDoes this mean that "It was wet." is true? Yes or No?\n'
CB = 'Suppose It rained. Can we infer that "It was wet."? Yes, No, or Maybe?\n'
PASSAGE = {"passage": "Cats purr.", "question": "do cats purr"}
BOOLQ = "Cats purr. Do cats purr?\n"
ROWS: dict[str, dict[str, Any]] = {
    "sst2": {"sentence": "a warm film"},
    "rte": PAIR,
    "cb": PAIR,
    "boolq": PASSAGE,
}


def render(name: str, row: dict[str, Any]) -> Any:
    return FORMATS[name].render(row)


@pytest.mark.parametrize(
    ("name", "row", "prompt", "words"),
    [
        ("sst2", {"sentence": " a warm film \n"}, "a warm film It was", [" terrible", " great"]),
        ("rte", PAIR, RTE, ["Yes", "No"]),
        ("rte", SENTENCES, RTE, ["Yes", "No"]),
        ("cb", PAIR, CB, ["Yes", "No", "Maybe"]),
        ("boolq", PASSAGE, BOOLQ, ["No", "Yes"]),
    ],
)
def test_each_label_is_its_word_after_the_published_prompt(
    name: str, row: dict[str, Any], prompt: str, words: list[str]
) -> None:
    for label, word in enumerate(words):
        for given in (label, str(label)):
            assert render(name, {**row, "label": given}) == Rendered(prompt, word)


@pytest.mark.parametrize(
    ("name", "label", "word"),
    [
        ("sst2", "negative", " terrible"),
        ("rte", "entailment", "Yes"),
        ("rte", "not_entailment", "No"),
        ("cb", "entailment", "Yes"),
        ("cb", "contradiction", "No"),
        ("cb", "neutral", "Maybe"),
        ("boolq", True, "Yes"),
        ("boolq", False, "No"),
        ("boolq", "True", "Yes"),
        ("boolq", "false", "No"),
    ],
)
def test_labels_may_be_the_words_that_the_files_have(name: str, label: object, word: str) -> None:
    assert render(name, {**ROWS[name], "label": label}).completion == word


def test_the_truth_of_a_boolq_row_may_be_its_answer() -> None:
    assert render("boolq", {**PASSAGE, "answer": True}) == Rendered(BOOLQ, "Yes")
    assert render("boolq", {**PASSAGE, "answer": False}).completion == "No"


@pytest.mark.parametrize("question", ["do cats purr", "do cats purr?", " Do cats purr ?? "])
def test_a_boolq_question_has_a_capital_and_one_question_mark(question: str) -> None:
    assert render("boolq", {**PASSAGE, "question": question, "label": 1}).prompt == BOOLQ


@pytest.mark.parametrize(
    ("name", "label", "reason"),
    [
        ("sst2", 2, "must be 0 (negative) or 1 (positive), is 2"),
        ("sst2", True, "must be 0 (negative) or 1 (positive), is True"),
        ("sst2", 1.0, "must be 0 (negative) or 1 (positive), is 1.0"),
        ("sst2", "9" * 5000, f"must be 0 (negative) or 1 (positive), is '{'9' * 39}..."),
        ("sst2", [1], "must be 0 (negative) or 1 (positive), is [1]"),
        ("rte", "neutral", "must be 0 (entailment) or 1 (not_entailment), is 'neutral'"),
        ("cb", 3, "must be 0 (entailment), 1 (contradiction) or 2 (neutral), is 3"),
        ("boolq", "yes", "must be 0 (false) or 1 (true), is 'yes'"),
    ],
)
def test_another_label_is_a_problem_that_says_what_there_may_be(
    name: str, label: object, reason: str
) -> None:
    with pytest.raises(RowProblem) as caught:
        render(name, {**ROWS[name], "label": label})
    assert str(caught.value) == f"field `label` {reason}"


@pytest.mark.parametrize("name", sorted(ROWS))
@pytest.mark.parametrize(
    ("label", "said"), [(-1, "-1"), ("-1", "'-1'"), ("", "''"), (None, "null")]
)
def test_a_row_without_a_label_is_said_to_be_one(name: str, label: object, said: str) -> None:
    with pytest.raises(RowProblem, match=f"is {said}: the row has no label, as the public test"):
        render(name, {**ROWS[name], "label": label})


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("sst2", {"sentence": "fine"}, "field `label` is missing (found: sentence)"),
        ("boolq", PASSAGE, "field `answer` is missing (found: passage, question)"),
        ("rte", {"label": 0}, "field `sentence1` is missing (found: label)"),
        ("rte", {**PAIR, "hypothesis": " ", "label": 0}, "field `hypothesis` is empty"),
        ("cb", {**PAIR, "premise": None, "label": 0}, "field `premise` must be text, is null"),
        (
            "boolq",
            {**PASSAGE, "question": "?", "label": 0},
            "field `question` is nothing but a question mark",
        ),
    ],
)
def test_a_missing_part_is_named(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowProblem) as caught:
        render(name, row)
    assert str(caught.value) == reason


def found(*rows: dict[str, Any]) -> tuple[str, int]:
    """The format that `auto` finds, and the line of the row that told."""
    format_, row = detect([Row("rows.jsonl", i, row) for i, row in enumerate(rows, start=1)])
    return format_.name, row.line


def test_the_words_of_labels_tell_tasks_with_the_same_fields_apart() -> None:
    yes, no, neutral = ({**PAIR, "label": w} for w in ("entailment", "not_entailment", "neutral"))
    assert found(yes, no) == ("rte", 1)
    assert found(yes, neutral) == ("cb", 2)
    assert found({**SENTENCES, "label": "not_entailment"}) == ("rte", 1)


def test_numbers_tell_only_where_no_other_task_numbers_otherwise() -> None:
    """0 and 1 of `sentence1` and `sentence2` mean the contrary in WNLI, and paraphrase in MRPC."""
    assert found({**PAIR, "label": 1}) == ("rte", 1)
    for row in ({**SENTENCES, "label": 1}, {**PAIR, "label": 2}):
        with pytest.raises(
            InputError, match="those of several tasks, and no label tells"
        ) as caught:
            found(row)
        assert "rte" in (caught.value.hint or "")


@pytest.mark.parametrize("row_format", CHOICES, ids=lambda f: f.name)
def test_other_words_take_the_place_of_a_formats_own(row_format: Any) -> None:
    """In the order of the labels, and with the space that the prompt asks for."""
    words = ("w0", "w1", "w2")[: len(row_format.candidates)]
    other = row_format.choosing(words)
    for label, word in enumerate(words):
        row = {**ROWS[row_format.name], "label": label}
        space = " " if row_format.name == "sst2" else ""
        assert other.candidates[label] == space + word
        assert other.render(row) == Rendered(row_format.render(row).prompt, space + word)
    assert row_format.candidates == FORMATS[row_format.name].candidates


def test_words_that_do_not_fit_a_format_are_refused() -> None:
    with pytest.raises(InputError, match=r"format sst2 has 2 labels, and .* 3: a, b, c"):
        FORMATS["sst2"].choosing(("a", "b", "c"))
    with pytest.raises(InputError, match="format alpaca has no candidates") as caught:
        FORMATS["alpaca"].choosing(("a", "b"))
    assert caught.value.hint == "formats that have: sst2, boolq, cb, rte"
