"""Row formats: what they make of a row, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from weft.core.errors import InputError
from weft.data.rows import Row, RowProblem
from weft.data.templates import FORMATS, Rendered, detect


def render(name: str, **row: Any) -> Any:
    return FORMATS[name].render(row)


def refusal(name: str, **row: Any) -> str:
    with pytest.raises(RowProblem) as caught:
        render(name, **row)
    return str(caught.value)


def test_text_is_all_response() -> None:
    assert render("text", text=" as it is\n") == Rendered("", " as it is\n")


def test_prompt_and_completion_are_kept_as_they_are() -> None:
    assert render("prompt_completion", prompt="Q: ", completion=" A ") == Rendered("Q: ", " A ")


def test_alpaca_with_input_is_the_published_text() -> None:
    rendered = render("alpaca", instruction="Translate.", input="Haus", output="house")
    assert rendered.completion == "house"
    assert rendered.prompt == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Translate.\n"
        "\n"
        "### Input:\n"
        "Haus\n"
        "\n"
        "### Response:"
    )


@pytest.mark.parametrize("no_input", [{}, {"input": ""}, {"input": None}])
def test_alpaca_without_input_is_the_published_text(no_input: dict[str, Any]) -> None:
    rendered = render("alpaca", instruction="Name a colour.", output="blue", **no_input)
    assert rendered.prompt == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Name a colour.\n"
        "\n"
        "### Response:"
    )


def test_braces_in_an_instruction_are_only_text() -> None:
    assert "{input} {0}" in render("alpaca", instruction="{input} {0}", output="x").prompt


def test_messages_keep_role_and_content() -> None:
    turns = [
        {"role": "user", "content": "hi", "extra": 1},
        {"role": "assistant", "content": "hello"},
    ]
    assert render("messages", messages=turns).messages == (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    )


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hi", "field `messages` must be a list, is text"),
        ([USER], "`messages` needs a turn to answer and the assistant's answer"),
        ([USER, "hi"], "`messages[1]` must be an object, is text"),
        ([USER, USER], "the last of `messages` must be the assistant's, its role is 'user'"),
        ([USER, {"role": "assistant"}], "field `messages[1].content` is missing (found: role)"),
        (
            [{"role": "user", "content": None}, USER],
            "field `messages[0].content` must be text, is null",
        ),
        (
            [USER, {"role": "assistant", "content": " "}],
            "field `messages[1].content` is empty",
        ),
    ],
)
def test_messages_that_cannot_be_used(messages: object, reason: str) -> None:
    assert refusal("messages", messages=messages) == reason


def test_tokenized_rows_are_taken_as_they_are() -> None:
    tokens = render("tokenized", input_ids=[1, 2, 3], labels=[-100, 2, 3])
    np.testing.assert_array_equal(tokens.ids_T, [1, 2, 3])
    np.testing.assert_array_equal(tokens.labels_T, [-100, 2, 3])
    assert tokens.ids_T.dtype == np.int64


def test_tokenized_rows_without_labels_are_all_supervised() -> None:
    np.testing.assert_array_equal(render("tokenized", input_ids=[1, 2]).labels_T, [1, 2])


@pytest.mark.parametrize(
    ("mask", "start", "stop"),
    [([1, 1, 1, 1], 0, 4), ([1, 1, 0, 0], 0, 2), ([0, 1, 1, 1], 1, 4), ([0, 1, 1, 0], 1, 3)],
)
def test_padding_is_neither_attended_nor_supervised(mask: list[int], start: int, stop: int) -> None:
    ids, labels = [7, 1, 2, 7], [7, -100, 2, 7]
    unlabelled = render("tokenized", input_ids=ids, attention_mask=mask)
    np.testing.assert_array_equal(unlabelled.ids_T, ids[start:stop])
    np.testing.assert_array_equal(unlabelled.labels_T, ids[start:stop])
    labelled = render("tokenized", input_ids=ids, attention_mask=mask, labels=labels)
    np.testing.assert_array_equal(labelled.ids_T, ids[start:stop])
    np.testing.assert_array_equal(labelled.labels_T, labels[start:stop])


def test_without_a_mask_nothing_is_padding() -> None:
    np.testing.assert_array_equal(
        render("tokenized", input_ids=[1, 2], attention_mask=None).ids_T, [1, 2]
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"input_ids": [1, "2"]}, "`input_ids[1]` must be a whole number, is text"),
        ({"input_ids": [1, True]}, "`input_ids[1]` must be a whole number, is true or false"),
        ({"input_ids": 7}, "field `input_ids` must be a list, is a number"),
        (
            {"input_ids": [1, 2], "labels": [1]},
            "`input_ids` has 2 tokens and `labels` has 1",
        ),
        (
            {"input_ids": [1, 2], "attention_mask": [1]},
            "`input_ids` has 2 tokens and `attention_mask` has 1",
        ),
        (
            {"input_ids": [1, 2], "attention_mask": [1, 2]},
            "`attention_mask` must hold 0 and 1 only, has 2",
        ),
        (
            {"input_ids": [1, 2], "attention_mask": [1, 0.5]},
            "`attention_mask[1]` must be a whole number, is a number",
        ),
        (
            {"input_ids": [1, 2], "attention_mask": [0, 0]},
            "`attention_mask` is 0 for every token",
        ),
        (
            {"input_ids": [9, 1, 2, 3], "attention_mask": [0, 1, 0, 1]},
            "`attention_mask[2]` is 0 between ones: only padding at the ends can be left out",
        ),
        ({"input_ids": [2**70]}, f"`input_ids` has a number that is no token id: {2**70}"),
    ],
)
def test_tokenized_rows_that_cannot_be_used(row: dict[str, Any], reason: str) -> None:
    assert refusal("tokenized", **row) == reason


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("alpaca", {"instruction": "x"}, "field `output` is missing (found: instruction)"),
        ("alpaca", {"instruction": "x", "output": "\n "}, "field `output` is empty"),
        ("alpaca", {"instruction": "x", "output": 3}, "field `output` must be text, is a number"),
        ("text", {"text": ""}, "field `text` is empty"),
        ("text", {}, "field `text` is missing (found: nothing)"),
        ("prompt_completion", {"prompt": []}, "field `prompt` must be text, is a list"),
        ("text", {"text": "ab\ud83d"}, "field `text` holds half a surrogate pair at character 3"),
    ],
)
def test_reasons_name_the_field(name: str, row: dict[str, Any], reason: str) -> None:
    assert refusal(name, **row) == reason


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (["text"], "text"),
        (["prompt", "completion", "text"], "prompt_completion"),
        (["instruction", "input", "output", "text"], "alpaca"),  # as published on the Hub
        (["messages", "prompt", "completion"], "messages"),
        (["idx", "sentence", "label"], "sst2"),
        (["question", "passage", "idx", "label"], "boolq"),  # SuperGLUE
        (["question", "title", "answer", "passage"], "boolq"),  # as first published
        (["input_ids", "attention_mask", "labels"], "tokenized"),
    ],
)
def test_the_fields_tell_the_format(fields: list[str], name: str) -> None:
    assert detect([Row("rows.jsonl", 1, dict.fromkeys(fields))])[0].name == name


def test_unknown_fields_are_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        detect([Row("rows.jsonl", 3, {"question": "", "answer": ""})])
    assert caught.value.problem == "rows.jsonl:3: no format has the fields question, answer"
    for accepted in ("alpaca: instruction, output", "sst2: sentence, label", "text: text"):
        assert accepted in (caught.value.hint or "")
