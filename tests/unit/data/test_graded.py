"""Rows whose completions are graded: prompts, responses to learn from, and splits of prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from weft.core.batch import IGNORE
from weft.core.errors import InputError
from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.rows import RowProblem
from weft.data.show import show
from weft.data.split import Split
from weft.data.templates import FORMATS, Rendered

Write = Callable[..., Path]
Tokenizer = PreTrainedTokenizerFast
NUMBERS = {"numbers": [44, 19, 35], "target": 98}


def prompts(path: Path, tokenizer: Tokenizer, **config: Any) -> Split:
    given = DataConfig(**{"path": path, "valid_fraction": 0} | config)
    return load_splits(given, tokenizer, ("train",), responses=False)["train"]


def refusal(name: str, row: dict[str, Any]) -> str:
    with pytest.raises(RowProblem) as caught:
        FORMATS[name].render(row)
    return str(caught.value)


def test_the_prompt_of_numbers_is_the_published_one() -> None:
    assert FORMATS["countdown"].pose(NUMBERS) == Rendered(
        "Using the numbers [44 19 35], create an equation that equals 98. You can use basic "
        "arithmetic operations (+, -, *, /) and each number can only be used once. Show your work "
        "in <think> </think> tags. And return the final answer in <answer> </answer> tags, for "
        "example <answer> (1 + 2) / 3 </answer>.\nLet me solve this step by step.\n<think>",
        "",
    )


def test_a_context_is_the_prompt_as_it_is() -> None:
    row = NUMBERS | {"context": "44 19 35 -> 98 "}
    assert FORMATS["countdown"].pose(row).prompt == "44 19 35 -> 98 "
    assert FORMATS["countdown"].pose(row | {"context": None}).prompt.startswith("Using")


def test_a_solution_is_a_response_to_learn() -> None:
    made = FORMATS["countdown"].render(NUMBERS | {"solution": "44 + 19 + 35"})
    assert made.completion == "44 + 19 + 35 = 98</think>\n<answer>44 + 19 + 35</answer>"
    whole = "19 and 35 are 54</think>\n<answer>44+19+35</answer>"
    assert FORMATS["countdown"].render(NUMBERS | {"solution": whole}).completion == whole


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (NUMBERS, "field `solution` is missing, and without it there is no response to learn"),
        (NUMBERS | {"solution": "44+19-35"}, "does not make 98 of [44, 19, 35]: '44+19-35'"),
        (NUMBERS | {"solution": "98"}, "does not make 98"),
        (NUMBERS | {"solution": "x <answer>98</answer>"}, "does not make 98"),
        (NUMBERS | {"numbers": "44 19"}, "field `numbers` must be a list of numbers, is text"),
        (NUMBERS | {"numbers": []}, "field `numbers` must be a list of numbers"),
        (NUMBERS | {"numbers": [1, 2.5]}, "`numbers[1]` must be a whole number from 0 to 999999"),
        (NUMBERS | {"numbers": [True]}, "`numbers[0]` must be a whole number"),
        (NUMBERS | {"numbers": [-1]}, "is -1"),
        (NUMBERS | {"numbers": [10**6]}, "is 1000000"),
        (NUMBERS | {"target": None}, "field `target` must be a whole or decimal number"),
        (NUMBERS | {"target": "1e999999999"}, "field `target` must be"),
        (NUMBERS | {"target": float("nan")}, "field `target` must be"),
        (NUMBERS | {"context": " "}, "field `context` is empty"),
        ({"numbers": [1]}, "field `target` is missing"),
    ],
)
def test_rows_that_are_no_problem_with_its_solution(row: dict[str, Any], reason: str) -> None:
    assert reason in refusal("countdown", row)


@pytest.mark.parametrize("target", [98, "98", 98.0, "12.5", -3, 12.5])
def test_a_target_is_a_number_however_it_is_written(target: object) -> None:
    assert FORMATS["countdown"].pose(NUMBERS | {"target": target}).completion == ""


def test_conciseness_measures_by_the_answer() -> None:
    row = {"prompt": "Name one:", "answer": "Red"}
    assert FORMATS["conciseness"].render(row) == Rendered("Name one:", "Red")
    assert FORMATS["conciseness"].render({"prompt": "Q", "target": "A"}) == Rendered("Q", "A")
    assert "field `answer` is missing" in refusal("conciseness", {"prompt": "Q"})
    with pytest.raises(RowProblem, match="field `answer` is empty"):
        FORMATS["conciseness"].pose({"prompt": "Q", "answer": ""})


def test_countdown_rows_are_known_by_their_fields(write_rows: Write, gpt2: Tokenizer) -> None:
    split = prompts(write_rows(NUMBERS), gpt2)
    assert split.task.format.name == "countdown"
    assert split.task.metric == "reward"
    assert prompts(write_rows({"nums": [1, 2], "target": 3}), gpt2).prompts[0].startswith("Using")


def test_conciseness_is_never_guessed(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows({"prompt": "Q", "answer": "A"})
    with pytest.raises(InputError, match="rows of many kinds have the fields prompt, answer") as e:
        load_splits(DataConfig(path=path, valid_fraction=0), gpt2, ("train",))
    assert "format conciseness, say so: `data.format`" in str(e.value.hint)
    assert prompts(path, gpt2).task.format.name == "prompt_completion"
    assert prompts(path, gpt2, format="conciseness").task.metric == "reward"


def test_an_example_is_its_prompt_and_nothing_is_supervised(
    write_rows: Write, chat: Tokenizer
) -> None:
    path = write_rows(NUMBERS | {"context": "Q:"}, NUMBERS | {"context": "Q:", "solution": "98"})
    split = prompts(path, chat)  # a wrong solution is nobody's business here
    for item, row in zip(split.items, split.rows, strict=True):
        assert item.example.ids_T.tolist() == [chat.bos_token_id, *chat("Q:").input_ids[1:]]
        assert (item.example.labels_T == IGNORE).all()
        np.testing.assert_array_equal(item.prompt_ids, item.example.ids_T)
        np.testing.assert_array_equal(item.example.goal.prompt_T, item.example.ids_T)
        assert item.example.goal.row is row
    assert split.counts["supervised_tokens"] == 0
    assert split.examples[0].ids_T.tolist() == split.examples[1].ids_T.tolist()


@pytest.mark.parametrize(
    ("row", "name", "prompt"),
    [
        ({"prompt": "Q:", "weight": 3}, "prompt_completion", "Q:"),
        ({"prompt": "Q:", "completion": " A"}, "prompt_completion", "Q:"),
        ({"prompt": "Q:", "answer": 5}, "prompt_completion", "Q:"),
        ({"instruction": "Go."}, "alpaca", "### Instruction:\nGo.\n\n### Response:"),
        ({"instruction": "Go.", "input": "x", "output": "y"}, "alpaca", "### Input:\nx\n"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages", "<|user|>hi</s>"),
        (
            {"messages": [{"role": n, "content": "hi"} for n in ("user", "assistant")]},
            "messages",
            "<|user|>hi</s><|assistant|>",
        ),
        ({"sentence": "Fine .", "label": 1}, "sst2", "Fine . It was"),
    ],
)
def test_rows_need_a_prompt_only(
    write_rows: Write, chat: Tokenizer, row: dict[str, Any], name: str, prompt: str
) -> None:
    split = prompts(write_rows(row), chat)
    assert split.task.format.name == name
    assert prompt in split.prompts[0]
    assert chat.decode(split.items[0].prompt_ids).endswith(split.prompts[0])
    assert split.rows == (row,)


def test_rows_of_ids_are_asked_up_to_what_is_supervised(write_rows: Write, gpt2: Tokenizer) -> None:
    row = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}
    assert prompts(write_rows(row), gpt2).examples[0].ids_T.tolist() == [5, 6]


def test_a_row_without_a_prompt_is_bad(write_rows: Write, gpt2: Tokenizer) -> None:
    for row in ({"text": "all of it"}, {"prompt": ""}, {"input_ids": [5, 6]}):
        with pytest.raises(InputError, match="there is no prompt to go on from"):
            prompts(write_rows(row), gpt2)
    with pytest.raises(InputError, match="`messages` needs a turn to answer"):
        prompts(write_rows({"messages": [{"role": "assistant", "content": "A"}]}), gpt2)


def test_shown_prompts_are_said_to_be_graded(write_rows: Write, gpt2: Tokenizer) -> None:
    said = show(prompts(write_rows({"prompt": "Q"}), gpt2), gpt2, 1)
    assert said.splitlines()[0] == "prompts: what the model says after them is graded"
    assert "train:1: 1 tokens, 0 supervised" in said


def test_a_prompt_that_leaves_no_room_is_dropped_and_said(
    write_rows: Write, gpt2: Tokenizer
) -> None:
    path = write_rows({"prompt": "x" * 9}, {"prompt": "x" * 8})
    split = prompts(path, gpt2, max_length=9)
    assert split.prompts == ("x" * 8,)
    assert split.counts["dropped_truncated"] == 1
    assert "train: rows dropped, with no room for a completion within 9 tokens: 1" in split.notices


def test_with_responses_a_row_that_lacks_one_is_bad(write_rows: Write, gpt2: Tokenizer) -> None:
    given = DataConfig(path=write_rows({"prompt": "Q:"}), format="prompt_completion")
    with pytest.raises(InputError, match="field `completion` is missing"):
        load_splits(given, gpt2, ("train",))


def test_settings_for_responses_have_no_effect_and_it_is_said(
    write_rows: Write, tokenizer_of: Callable[..., Tokenizer]
) -> None:
    path = write_rows({"prompt": "Q:"})
    split = prompts(path, tokenizer_of("gpt2"), train_on_prompt=True, pad_target=True)
    assert (split.examples[0].labels_T == IGNORE).all()
    assert "`data.train_on_prompt` has no effect: nothing is supervised" in split.notices
    assert "`data.pad_target` has no effect: nothing is supervised" in split.notices
    without_eos = tokenizer_of("gpt2", eos_token=None)
    assert prompts(path, without_eos).examples[0].tokens == 2


def test_prompts_can_be_put_into_the_chat_template(write_rows: Write, chat: Tokenizer) -> None:
    path = write_rows({"prompt": "Q:", "completion": "A"})
    asked = prompts(path, chat, chat=True)
    assert asked.prompts == ("<|user|>Q:</s><|assistant|>",)
    taught = load_splits(DataConfig(path=path, valid_fraction=0, chat=True), chat, ("train",))
    item = taught["train"].items[0]
    assert chat.decode(item.example.ids_T) == "<|user|>Q:</s><|assistant|>A</s>"
    np.testing.assert_array_equal(item.prompt_ids, asked.items[0].prompt_ids)
    assert item.reference == "A"


def test_a_template_of_ones_own_takes_prompts_too(
    write_rows: Write, gpt2: Tokenizer, tmp_path: Path
) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    path = write_rows(NUMBERS | {"context": "Q"})
    split = prompts(path, gpt2, chat=True, chat_template=template, format="countdown")
    assert split.prompts == ("user: Q\n",)
    with pytest.raises(InputError, match="needs a chat template, and the tokenizer has none"):
        prompts(path, gpt2, chat=True)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "all"},
        {"messages": [{"role": "user", "content": "hi"}]},
        {"sentence": "Fine .", "label": 1},
        {"input_ids": [5, 6]},
    ],
)
def test_what_is_no_plain_prompt_is_not_put_into_it(
    write_rows: Write, chat: Tokenizer, row: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"`data\.chat` puts plain prompts into a chat template"):
        prompts(write_rows(row), chat, chat=True)


def test_a_sample_of_the_test_rows_is_always_the_same(gpt2: Tokenizer) -> None:
    def drawn(**config: Any) -> Split:
        given = DataConfig(task="countdown", **config)
        return load_splits(given, gpt2, ("test",), responses=False)["test"]

    whole, sample = drawn(), drawn(test_samples=100)
    ids = [example.id for example in sample.examples]
    assert len(ids) == 100
    assert ids == [e.id for e in whole.examples if e.id in set(ids)]  # in their order
    assert ids != [e.id for e in whole.examples[:100]]
    assert ids == [e.id for e in drawn(test_samples=100).examples]
    assert ids != [e.id for e in drawn(test_samples=100, split_seed=1).examples]
    assert sample.notices == (
        "100 of 400 test rows are used (`data.test_samples`, drawn with `data.split_seed` 0)",
    )
    assert "all are used" in drawn(test_samples=401).notices[0]


def test_a_sample_of_the_test_rows_leaves_other_splits_alone(gpt2: Tokenizer) -> None:
    given = DataConfig(task="countdown", test_samples=10)
    splits = load_splits(given, gpt2, ("train", "valid"), responses=False)
    assert [len(split.items) for split in splits.values()] == [1600, 100]
    assert splits["train"].notices == ()
