"""The generators give the committed rows again, and the corpus stays clear of the tasks."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from tools.corpus import build
from tools.tasks import conciseness, countdown, instruct, reviews, tables

DATA = Path(__file__).resolve().parents[3] / "weft" / "assets" / "data"
TASKS = {"instruct": instruct, "reviews": reviews, "tables": tables}
SAMPLE = 150


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return [build.document(genre, index) for genre in build.GENRES for index in range(SAMPLE)]


@pytest.mark.parametrize("task", TASKS)
def test_first_rows_are_the_committed_test_rows(task: str) -> None:
    committed = (DATA / task / "test.jsonl").read_text(encoding="utf-8").splitlines()[:100]
    assert list(islice(TASKS[task].rows(), 100)) == [json.loads(line) for line in committed]


@pytest.mark.parametrize(
    ("task", "splits"),
    [
        ("countdown", countdown.splits),
        ("countdown-easy", countdown.easy_splits),
        ("conciseness", conciseness.splits),
    ],
)
def test_rows_with_a_reward_are_the_committed_ones(task: str, splits) -> None:
    for split, rows in splits().items():
        committed = (DATA / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert rows == [json.loads(line) for line in committed]


def test_another_seed_gives_other_problems() -> None:
    assert next(countdown.rows(1)) != next(countdown.rows(2))


@pytest.mark.parametrize("genre", build.GENRES)
def test_corpus_documents_have_not_changed(genre: str) -> None:
    recipe = json.loads(build.RECIPE.read_text(encoding="utf-8"))
    assert build.sample_digest(genre) == recipe["genres"][genre]["sample_sha256"]


def test_another_seed_gives_another_document() -> None:
    assert build.document("stories", 0, seed=1) != build.document("stories", 0, seed=2)


def test_corpus_has_no_task_layout(sample: list[str]) -> None:
    for text in sample:
        assert "### Instruction" not in text
        assert "\ncolumns: " not in text
        assert "A: SELECT" not in text


def test_corpus_has_no_held_out_rows(sample: list[str]) -> None:
    whole = "\n".join(sample)
    for split in ("valid", "test"):
        for line in (DATA / "tables" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            statement = json.loads(line)["text"].split("\nA: ")[1]
            assert statement not in whole
