"""The bundled tasks: how their rows are read and their answers compared."""

from __future__ import annotations

import pytest

from weft.data.rows import RowProblem
from weft.data.task import task_of_format
from weft.data.tasks import TASKS
from weft.data.tasks.tables import normalise_sql
from weft.data.templates import FORMATS, Rendered

QUESTION = "table: 1-10015132-16\ncolumns: Player, No.\nQ: Who wears 2? A: nobody?\nA: "


@pytest.mark.parametrize(
    ("name", "row_format", "metric", "candidates"),
    [
        ("instruct", "alpaca", "token_accuracy", ()),
        ("tables", "tables", "exact_match", ()),
        ("reviews", "sst2", "choice", (" terrible", " great")),
    ],
)
def test_the_bundled_tasks(
    name: str, row_format: str, metric: str, candidates: tuple[str, ...]
) -> None:
    task = TASKS[name]
    assert (task.format.name, task.metric, task.candidates) == (row_format, metric, candidates)
    assert task.directory is not None
    assert task.directory.parts[-4:] == ("weft", "assets", "data", name)


def test_a_table_row_divides_at_its_answer() -> None:
    rendered = TASKS["tables"].format.render({"text": QUESTION + "SELECT Player FROM t"})
    assert rendered == Rendered(QUESTION, "SELECT Player FROM t")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("table: x\nQ: y", "where the response begins"),
        ("table: x\nQ: y\nA: ", "the response is empty"),
    ],
)
def test_a_table_row_without_an_answer_is_bad(text: str, reason: str) -> None:
    with pytest.raises(RowProblem, match=reason):
        TASKS["tables"].format.render({"text": text})


@pytest.mark.parametrize(
    ("query", "normal"),
    [
        ("select a  from t\nwhere b = 1 ", "SELECT a FROM t WHERE b = 1"),
        ("SELECT Count(x) FROM t", "SELECT COUNT(x) FROM t"),
        ("SELECT a FROM t WHERE b = 'from  here'", "SELECT a FROM t WHERE b = 'from  here'"),
        ('SELECT "or" FROM t', 'SELECT "or" FROM t'),
        ("SELECT Fromage FROM t", "SELECT Fromage FROM t"),
    ],
)
def test_queries_are_compared_without_spacing_and_case_of_keywords(query: str, normal: str) -> None:
    assert normalise_sql(query) == normal
    assert normalise_sql(normal) == normal


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_rows_of_a_user_are_judged_by_their_format(name: str) -> None:
    task = task_of_format(FORMATS[name])
    assert task.metric == ("choice" if name == "sst2" else "token_accuracy")
    assert task.directory is None
