"""The bundled task data: schemas, sizes, splits that do not overlap, honest tables."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[3] / "weft" / "assets" / "data"
SPLITS = ("train", "valid", "test")
FIELDS = {
    "instruct": {"instruction": str, "input": str, "output": str},
    "tables": {"text": str},
    "reviews": {"sentence": str, "label": int},
}
AT_LEAST = {
    "instruct": {"train": 2400, "valid": 200, "test": 200},
    "tables": {"train": 2000, "valid": 200, "test": 200},
    "reviews": {"train": 2400, "valid": 872, "test": 872},
}
KEY = {
    "instruct": lambda row: row["instruction"] + " <> " + row["input"],
    "tables": lambda row: row["text"],
    "reviews": lambda row: row["sentence"],
}
STATEMENT = re.compile(
    r"table: (?P<id>1-\d+-\d+)\ncolumns: (?P<columns>[^\n]+)\nQ: (?P<question>[^\n]+)\n"
    r"A: SELECT (?P<what>[^\n]+?) FROM (?P<source>1-\d+-\d+)(?P<where> WHERE [^\n]+)?"
)


def rows(task: str, split: str) -> list[dict]:
    text = (DATA / task / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", FIELDS)
def test_schema_and_size(task: str, split: str) -> None:
    found = rows(task, split)
    assert len(found) >= AT_LEAST[task][split]
    for row in found:
        assert {name: type(value) for name, value in row.items()} == FIELDS[task]


@pytest.mark.parametrize("task", FIELDS)
def test_splits_do_not_overlap(task: str) -> None:
    seen: set[str] = set()
    for split in SPLITS:
        for row in rows(task, split):
            key = re.sub(r"[^a-z0-9<>]+", " ", KEY[task](row).lower()).strip()
            assert key not in seen, f"{task}/{split}: {key}"
            seen.add(key)


@pytest.mark.parametrize("split", SPLITS)
def test_reviews_are_balanced(split: str) -> None:
    labels = [row["label"] for row in rows("reviews", split)]
    assert set(labels) == {0, 1}
    assert sum(labels) * 2 == len(labels)


@pytest.mark.parametrize("split", SPLITS)
def test_tables_ask_about_their_own_table(split: str) -> None:
    for row in rows("tables", split):
        match = STATEMENT.fullmatch(row["text"])
        assert match, row["text"]
        assert match["source"] == match["id"]
        columns = match["columns"].split(", ")
        target = re.sub(r"^(COUNT|MAX|MIN|SUM|AVG) ", "", match["what"])
        assert target in columns
        assert target.lower() in match["question"].lower()
        for condition in (match["where"] or "").removeprefix(" WHERE ").split(" AND "):
            if condition:
                name, value = condition.split(" = ", 1)
                assert name in columns
                assert name.lower() in match["question"].lower()
                assert value.strip("'") in match["question"]


def test_tables_are_in_one_split_only() -> None:
    idents = [{row["text"].split("\n", 1)[0] for row in rows("tables", split)} for split in SPLITS]
    assert not (idents[0] & idents[1] or idents[0] & idents[2] or idents[1] & idents[2])


def test_tables_have_aggregates_and_double_conditions() -> None:
    texts = [row["text"] for row in rows("tables", "train")]
    for word in ("SELECT COUNT", "SELECT MAX", "SELECT MIN", "SELECT SUM", "SELECT AVG", " AND "):
        assert any(word in text for text in texts), word


@pytest.mark.parametrize("split", SPLITS)
def test_instruct_answers_have_their_own_style(split: str) -> None:
    found = rows("instruct", split)
    assert 0.2 < sum(not row["input"] for row in found) / len(found) < 0.8
    for row in found:
        assert 2 <= len(row["output"].split()) <= 40
        assert row["output"].startswith("With pleasure." if row["input"] else "Of course.")


COUNTDOWN = {"countdown": ((3, 4), 99, (10, 100)), "countdown-easy": ((3,), 20, (1, 50))}


@pytest.mark.parametrize("task", COUNTDOWN)
def test_countdown_problems_are_of_their_grade(task: str) -> None:
    counts, largest, (lowest, highest) = COUNTDOWN[task]
    found = [row for split in SPLITS for row in rows(task, split)]
    assert [len(rows(task, split)) for split in SPLITS] == [1600, 100, 400]
    for row in found:
        assert len(row["numbers"]) in counts
        assert all(1 <= number <= largest for number in row["numbers"])
        assert lowest <= row["target"] <= highest
    per_count = Counter(len(row["numbers"]) for row in found)
    assert min(per_count.values()) > 0.4 * len(found)


@pytest.mark.parametrize("task", COUNTDOWN)
def test_no_countdown_problem_is_there_twice(task: str) -> None:
    found = [row for split in SPLITS for row in rows(task, split)]
    assert len({(*sorted(row["numbers"]), row["target"]) for row in found}) == len(found) == 2100


@pytest.mark.parametrize("task", COUNTDOWN)
def test_every_countdown_solution_is_right(task: str) -> None:
    for split in SPLITS:
        for row in rows(task, split):
            solution = re.sub("</?(think|answer)>", "", row["solution"]).strip()
            assert re.fullmatch(r"[0-9+*/() -]+", solution)
            used = sorted(int(digits) for digits in re.findall(r"\d+", solution))
            assert used == sorted(row["numbers"])
            assert eval(solution) == row["target"]
            if task == "countdown-easy":
                assert not set(solution) & set("*/()")
                shown = " ".join(map(str, row["numbers"]))
                assert row["context"] == f"[{shown}] {row['target']}\n<think>"


def test_conciseness_has_the_published_rows() -> None:
    assert [len(rows("conciseness", split)) for split in SPLITS] == [2, 8, 8]
    assert rows("conciseness", "train")[1]["answer"] == "No"
    assert rows("conciseness", "test")[4] == {
        "prompt": 'Translate "Hello" to Spanish:',
        "answer": "Hola",
    }
