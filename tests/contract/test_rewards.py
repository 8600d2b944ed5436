"""What every entry of `REWARDS` promises. A new reward is tested by being in the dict."""

import math
import random
import time

import pytest

from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.rewards import REWARDS
from weft.data.tasks import TASKS
from weft.data.templates import FORMATS
from weft.data.tokenizer import load_tokenizer

MODES = ("strict", "paper")
PIECES = (
    *("<think>", "</think>", "<answer>", "</answer>", "\n", " ", "\x00", "\r", "\u2028"),
    *("7", "99", "007", "+", "-", "*", "**", "//", "/", "(", ")", ".", "e", "j", "_", "="),
    *("\uff17", "\u0667", "\u00b2", "\ud800", "\U0001f98a", "e\u0301", "None", "nan", "{}", "%s"),
)
LONG = 1_000_000


def tasks_of(name):
    return [task for task in TASKS.values() if task.format.name == name]


@pytest.fixture(scope="module", params=[(n, mode) for n in sorted(REWARDS) for mode in MODES])
def graded(request):
    """A grader, and the items of the tasks that it grades."""
    name, mode = request.param
    tokenizer = load_tokenizer("weft/tiny")
    splits = [
        load_splits(DataConfig(task=task.name), tokenizer, ("test",))["test"]
        for task in tasks_of(name)
    ]
    with_response = [item for split in splits for item in split.items[:100]]
    grader = REWARDS[name](mode)
    yield grader, with_response
    grader.close()


def check(grades, texts):
    assert len(grades) == len(texts)
    for grade in grades:
        assert isinstance(grade.reward, float)
        assert math.isfinite(grade.reward)
        assert grade.failure is None
        assert all(math.isfinite(value) for value in grade.parts.values())
        assert grade.parts.keys() == grades[0].parts.keys()


def test_it_grades_the_rows_of_a_bundled_task_and_of_users(graded):
    grader, items = graded
    assert items
    assert grader.name in FORMATS
    assert all(isinstance(value, str) for value in grader.record().values())


def test_any_text_gets_a_grade(graded):
    grader, items = graded
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(0, 25))) for _ in range(5000)]
    rows = [rng.choice(items).row for _ in texts]
    check(grader(rows, texts), texts)


def test_a_long_text_gets_one_in_time(graded):
    grader, items = graded
    texts = [piece * (LONG // len(piece)) for piece in PIECES]
    texts += [f"</think>\n<answer>{text}</answer>" for text in texts]
    texts += [f"{text}</think>\n<answer>7{text}" for text in texts]
    slowest = 0.0
    for text in texts:
        start = time.process_time()
        check(grader([items[0].row], [text]), [text])
        slowest = max(slowest, time.process_time() - start)
    assert slowest < 1


def test_no_response_that_can_be_learnt_is_beaten_by_another_or_by_nothing(graded):
    grader, items = graded
    rows = [item.row for item in items]
    best = [grade.reward for grade in grader(rows, [item.reference for item in items])]
    others = [item.reference for item in items[1:] + items[:1]]
    for texts in (others, [""] * len(items), ["x" * 300] * len(items)):
        worse = [grade.reward for grade in grader(rows, texts)]
        assert all(a >= b for a, b in zip(best, worse, strict=True))
        assert sum(best) > sum(worse)


def test_the_same_completion_gets_the_same_grade_whoever_is_graded_with_it(graded):
    grader, items = graded
    rows, texts = [item.row for item in items], [item.reference for item in items]
    assert grader(rows, texts) == grader(rows[::-1], texts[::-1])[::-1]
    assert grader(rows, texts) == [grader([r], [t])[0] for r, t in zip(rows, texts, strict=True)]
    assert grader([], []) == []
