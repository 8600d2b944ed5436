"""The `data` section of a configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from weft.data.config import DataConfig


def message(**given: object) -> str:
    with pytest.raises(ValidationError) as caught:
        DataConfig(**given)
    return str(caught.value)


def test_one_of_task_and_path_is_enough() -> None:
    assert DataConfig(task="tables").path is None
    assert DataConfig(path="rows.jsonl").path == Path("rows.jsonl")


def test_neither_task_nor_path_names_both() -> None:
    said = message()
    assert "give `data.task` (one of instruct, tables, reviews, countdown, " in said
    assert ") or `data.path`" in said


def test_both_task_and_path_are_one_too_many() -> None:
    said = message(task="tables", path="rows.jsonl")
    assert "`data.task` is 'tables' and `data.path` is 'rows.jsonl': give only one" in said


def test_an_unknown_task_gets_the_nearest() -> None:
    said = message(task="table")
    assert "no task 'table'; the tasks are instruct, tables, reviews" in said
    assert "did you mean `tables`?" in said


@pytest.mark.parametrize(
    "extra", [{"valid_path": "v.jsonl"}, {"test_path": "t.jsonl"}, {"format": "text"}]
)
def test_what_a_task_fixes_cannot_be_given_with_it(extra: dict[str, str]) -> None:
    (name,) = extra
    assert f"`data.{name}`: only with `data.path`" in message(task="tables", **extra)


def test_a_chat_template_is_for_messages() -> None:
    said = message(path="r.jsonl", format="alpaca", chat_template="t.jinja")
    assert "`data.chat_template` applies to `messages`, and `data.format` is 'alpaca'" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_length", 1), ("rows", 0), ("valid_fraction", 1.0), ("on_bad_row", "warn")],
)
def test_values_out_of_range_are_named(key: str, value: object) -> None:
    assert key in message(task="tables", **{key: value})


def test_a_chat_template_needs_a_conversation_to_put_into_words() -> None:
    assert "set `data.chat=true`" in message(path="x.jsonl", format="alpaca", chat_template="a.j2")
    assert "only with `data.path`" in message(task="countdown", chat_template="a.j2")
    given = DataConfig(task="countdown", chat=True, chat_template="a.j2")
    assert given.chat_template == Path("a.j2")


def test_unknown_keys_are_refused() -> None:
    assert "max_len" in message(task="tables", max_len=3)


def test_every_field_says_what_it_is() -> None:
    undocumented = [n for n, f in DataConfig.model_fields.items() if not f.description]
    assert undocumented == []


def test_needs_no_torch_and_no_transformers() -> None:
    code = (
        "import sys, weft.data.config, weft.data.dataset, weft.data.show, weft.data.stream;"
        "heavy = {'torch', 'transformers', 'tokenizers', 'datasets', 'pyarrow'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((" good", "bad"), r"has ' good': give words without space around them"),
        (("good", ""), r"has '': give words"),
        (("good", "good"), r"has 'good' twice"),
    ],
)
def test_words_to_choose_between_are_words_and_differ(words: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        DataConfig(task="reviews", verbalizers=words)


def test_words_that_yaml_takes_for_truth_values_are_told_apart_from_other_slips():
    with pytest.raises(ValidationError, match="a bare Yes or No is a truth value in YAML"):
        DataConfig(task="reviews", verbalizers=[False, True])
