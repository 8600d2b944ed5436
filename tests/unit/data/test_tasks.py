"""The bundled tasks, and how a user's own rows of the same formats are judged."""

from __future__ import annotations

import pytest

from weft.data.rows import RowProblem
from weft.data.task import task_of_format
from weft.data.tasks import TASKS
from weft.data.templates import FORMATS, Rendered

QUESTION = "table: 1-10015132-16\ncolumns: Player, No.\nQ: Who wears 2? A: nobody?\nA: "


@pytest.mark.parametrize(
    ("name", "row_format", "metric", "candidates", "judges"),
    [
        ("instruct", "alpaca", "token_accuracy", (), []),
        ("tables", "tables", "exact_match", (), ["exact_match", "logical_form"]),
        ("reviews", "sst2", "choice", (" terrible", " great"), []),
        ("countdown", "countdown", "reward", (), []),
        ("countdown-easy", "countdown", "reward", (), []),
        ("conciseness", "conciseness", "reward", (), []),
    ],
)
def test_the_bundled_tasks(
    name: str, row_format: str, metric: str, candidates: tuple[str, ...], judges: list[str]
) -> None:
    task = TASKS[name]
    assert (task.format.name, task.metric, task.candidates) == (row_format, metric, candidates)
    assert list(task.judges) == judges
    assert task.directory is not None
    assert task.directory.parts[-4:] == ("weft", "assets", "data", name)


def test_a_table_row_divides_at_its_answer() -> None:
    query = "SELECT Player FROM 1-10015132-16 WHERE No. = '2'"
    assert FORMATS["tables"].render({"text": QUESTION + query}) == Rendered(QUESTION, query)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("SELECT Player FROM 1-1-1", "reads FROM `1-1-1`, and the row's table is 1-10015132-16"),
        ("SELECT Name FROM 1-10015132-16", "selects `Name`, and the row's columns are Player, No."),
        (" ", "the response is empty"),
    ],
)
def test_a_question_whose_query_is_not_of_its_own_table_is_bad(query: str, reason: str) -> None:
    with pytest.raises(RowProblem, match=reason):
        FORMATS["tables"].render({"text": QUESTION + query})


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_rows_of_a_user_are_judged_by_their_format(name: str) -> None:
    task = task_of_format(FORMATS[name])
    metrics = dict.fromkeys(("sst2", "rte", "boolq", "cb"), "choice") | {"tables": "exact_match"}
    metrics |= dict.fromkeys(("countdown", "conciseness"), "reward")
    assert task.metric == metrics.get(name, "token_accuracy")
    assert task.judges == (TASKS["tables"].judges if name == "tables" else {})
    assert task.directory is None
