"""The conciseness reward: how far a completion is from the length of its answer."""

from __future__ import annotations

import pytest

from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.rewards.conciseness import Conciseness


@pytest.mark.parametrize(
    ("answer", "text", "reward"),
    [
        ("No", "No", 0),
        ("No", "no", 0),  # what it says does not matter
        ("No", "??", 0),
        ("No", " No", -1),  # a space is a character
        ("No", "", -2),
        ("Paris", "It is Paris.", -7),
        ("\u00e9t\u00e9", "abc", 0),  # characters, not bytes
        ("8", "x" * 2001, -2000),
        ("8", "x" * 5_000_000, -4_999_999),
    ],
)
def test_the_reward_is_minus_the_difference_in_characters(answer, text, reward) -> None:
    (grade,) = Conciseness()([{"prompt": "?", "answer": answer}], [text])
    assert grade.reward == reward
    assert grade.parts["normalised"] == (reward + 2000) / 2000
    assert grade.parts["characters"] == len(text)


@pytest.mark.parametrize(("text", "exact"), [("No", 1), (" No\n", 1), ("no", 0), ("No.", 0)])
def test_exact_answers_are_counted_beside_it(text: str, exact: int) -> None:
    (grade,) = Conciseness()([{"prompt": "?", "answer": "No"}], [text])
    assert grade.parts["exact_match"] == exact


def test_public_rows_call_the_answer_target() -> None:
    assert Conciseness()([{"prompt": "?", "target": "No"}], ["yes"])[0].reward == -1


def test_the_published_rows_are_bundled(tiny_tokenizer) -> None:
    splits = load_splits(
        DataConfig(task="conciseness"), tiny_tokenizer, ("train", "test"), responses=False
    )
    assert [len(split.items) for split in splits.values()] == [2, 8]
    assert splits["train"].rows[0] == {"prompt": "Solve: 3 + 5 =", "answer": "8"}
    assert splits["test"].rows[1]["prompt"] == "Calculate: 12 \u00d7 7 ="
    assert splits["test"].task.metric == "reward"
