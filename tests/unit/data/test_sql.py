"""Queries in the public WikiSQL text format: their logical form, and how texts are judged."""

from __future__ import annotations

import itertools

import pytest

from weft.data.rows import RowProblem
from weft.data.sql import (
    Condition,
    Query,
    Table,
    divide,
    exact_match,
    logical_form,
    looks_like_question,
    normalised,
)

PLAYERS = "table: 1-900-2\ncolumns: Player, No., School/Club Team, Years (active)\nQ: Who?\nA: "
TRICKY = (
    "table: 1-77-1\n"
    "columns: From, Won and lost, Where held, MAX speed, GDP (2003, in €), Trees, %, Count, =, #\n"
    "Q: What?\nA: "
)

PUBLIC_STYLE = [
    (PLAYERS, "SELECT Player FROM 1-900-2", "player", None, []),
    (PLAYERS, "SELECT COUNT No. FROM 1-900-2", "no.", "COUNT", []),
    (
        PLAYERS,
        "SELECT School/Club Team FROM 1-900-2 WHERE No. = 21",
        "school/club team",
        None,
        [("no.", "=", "21")],
    ),
    (
        PLAYERS,
        "SELECT MIN No. FROM 1-900-2 WHERE Years (active) > 1999.5 AND Player = 'Al AND Bo'",
        "no.",
        "MIN",
        [("years (active)", ">", "1999.5"), ("player", "=", "al and bo")],
    ),
    (
        PLAYERS,
        "SELECT Player FROM 1-900-2 WHERE School/Club Team = '\"Who's <there> = it\"'",
        "player",
        None,
        [("school/club team", "=", '"who\'s <there> = it"')],
    ),
    (
        PLAYERS,
        "SELECT Player FROM 1-900-2 WHERE School/Club Team = 'cut AND No. = 3'",
        "player",
        None,
        [("school/club team", "=", "cut and no. = 3")],
    ),
    (TRICKY, "SELECT From FROM 1-77-1", "from", None, []),
    (TRICKY, "SELECT COUNT From FROM 1-77-1", "from", "COUNT", []),
    (TRICKY, "SELECT Count FROM 1-77-1", "count", None, []),
    (TRICKY, "SELECT COUNT Count FROM 1-77-1", "count", "COUNT", []),
    (TRICKY, "SELECT MAX speed FROM 1-77-1", "max speed", None, []),
    (TRICKY, "SELECT MIN MAX speed FROM 1-77-1", "max speed", "MIN", []),
    (
        TRICKY,
        "SELECT Where held FROM 1-77-1 WHERE Won and lost = '1 and 2' AND Where held = 'A from B'",
        "where held",
        None,
        [("won and lost", "=", "1 and 2"), ("where held", "=", "a from b")],
    ),
    (
        TRICKY,
        "SELECT AVG GDP (2003, in €) FROM 1-77-1 WHERE Trees, % < 3 AND # = 1 AND = = 'x'",
        "gdp (2003, in €)",
        "AVG",
        [("trees, %", "<", "3"), ("#", "=", "1"), ("=", "=", "x")],
    ),
]


@pytest.mark.parametrize(("prompt", "query", "column", "aggregation", "conditions"), PUBLIC_STYLE)
def test_a_query_has_a_column_an_aggregation_and_conditions(
    prompt: str,
    query: str,
    column: str,
    aggregation: str | None,
    conditions: list[tuple[str, str, str]],
) -> None:
    wanted = Query(column, aggregation, frozenset(Condition(*each) for each in conditions))
    assert Table.of(prompt).parse(query) == wanted


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("Bo", "the query does not begin with SELECT: `Bo`"),
        ("SELECT Player", "the query has no FROM: `Player`"),
        ("SELECT FROM 1-900-2", "the query has no FROM: `FROM 1-900-2`"),
        (
            "SELECT Player FROM 1-900-3 WHERE No. = 'x FROM 1-900-2'",
            "the query reads FROM `1-900-3`, and the row's table is 1-900-2",
        ),
        (
            "SELECT Player FROM 1-900-2 ORDER BY No.",
            "the query reads FROM `1-900-2 ORDER BY No.`, and the row's table is 1-900-2",
        ),
        (
            "SELECT COUNT Name FROM 1-900-2",
            "the query selects `Name`, and the row's columns are Player, No., School/Club Team, "
            "Years (active)",
        ),
        (
            "SELECT Player FROM 1-900-2 WHERE No. = 1 AND Year = 2",
            "the query filters `Year`, and the row's columns are Player, No., School/Club Team, "
            "Years (active)",
        ),
        (
            "SELECT Player FROM 1-900-2 WHERE No. = 1 AND Player",
            "a condition has none of =, < and >: `Player`",
        ),
        (
            "SELECT Player FROM 1-900-2 WHERE Player = Bo",
            "a value is neither a number nor in single quotes: `Bo`",
        ),
        (
            "SELECT Player FROM 1-900-2 WHERE Player = 'Bo",
            "a value is neither a number nor in single quotes: `'Bo`",
        ),
        (
            f"SELECT {'very ' * 20}long",
            f"the query has no FROM: `{('very ' * 20)[:60]}...`",
        ),
    ],
)
def test_what_is_no_query_of_the_table_is_refused_with_a_precise_reason(
    query: str, reason: str
) -> None:
    with pytest.raises(RowProblem) as caught:
        Table.of(PLAYERS).parse(query)
    assert str(caught.value) == reason
    assert not logical_form(PLAYERS, query, query)  # it matches nothing, not even itself


def test_many_conditions_are_no_burden() -> None:
    where = " AND ".join("Player = 'a AND b'" for _ in range(50))
    found = Table.of(PLAYERS).parse(f"SELECT Player FROM 1-900-2 WHERE {where}")
    assert found.conditions == {Condition("player", "=", "a and b")}


CONDITIONS = ("No. = 3", "Player > 'Al'", "Years (active) = '1996-97'")
REFERENCE = f"SELECT MAX No. FROM 1-900-2 WHERE {' AND '.join(CONDITIONS)}"


@pytest.mark.parametrize("order", list(itertools.permutations(CONDITIONS)))
def test_the_order_of_conditions_does_not_matter_to_the_logical_form(
    order: tuple[str, ...],
) -> None:
    text = f"SELECT MAX No. FROM 1-900-2 WHERE {' AND '.join(order)}"
    assert logical_form(PLAYERS, REFERENCE, text)
    assert exact_match(PLAYERS, REFERENCE, text) == (order == CONDITIONS)


@pytest.mark.parametrize(
    "text",
    [
        REFERENCE.lower(),
        REFERENCE.upper(),
        "  " + REFERENCE.replace(" ", "  ") + "\n",
        REFERENCE.replace("No. = 3", "No. = '3'"),
        REFERENCE + " AND No. = 3",
    ],
)
def test_letter_case_spaces_and_quotes_of_numbers_do_not_matter_to_the_logical_form(
    text: str,
) -> None:
    assert logical_form(PLAYERS, REFERENCE, text)
    assert logical_form(PLAYERS, text, REFERENCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("MAX No.", "No."),
        ("MAX No.", "MIN No."),
        ("MAX No.", "MAX Player"),
        ("No. = 3", "No. = 4"),
        ("No. = 3", "No. = 3.0"),  # WikiSQL compares the digits
        ("No. = 3", "No. > 3"),
        ("No. = 3", "Player = 3"),
        ("No. = 3 AND ", ""),
        ("1996-97", "1996 - 97"),
        ("1-900-2", "1-900-1"),
        (" WHERE", ""),
    ],
)
def test_whatever_else_differs_is_another_logical_form(old: str, new: str) -> None:
    text = REFERENCE.replace(old, new)
    assert text != REFERENCE
    assert not logical_form(PLAYERS, REFERENCE, text)
    assert not exact_match(PLAYERS, REFERENCE, text)


@pytest.mark.parametrize(
    ("query", "normal"),
    [
        ("select a  from t\nwhere b = 1 ", "SELECT a FROM t WHERE b = 1"),
        ("SELECT Count x FROM t", "SELECT COUNT x FROM t"),
        ("SELECT a FROM t where b = 'from  here'", "SELECT a FROM t WHERE b = 'from  here'"),
        (
            "SELECT a FROM t where b = 'who's from  here' and  c = 'it'",
            "SELECT a FROM t WHERE b = 'who's from  here' AND c = 'it'",
        ),
        ("SELECT Fromage FROM t", "SELECT Fromage FROM t"),
    ],
)
def test_exact_match_is_without_spacing_and_case_of_keywords(query: str, normal: str) -> None:
    assert normalised(query) == normal
    assert normalised(normal) == normal
    assert exact_match(PLAYERS, query, normal)


def test_exact_match_minds_the_case_of_names_and_values() -> None:
    for changed in (REFERENCE.replace("'Al'", "'al'"), REFERENCE.replace("Player", "player")):
        assert not exact_match(PLAYERS, REFERENCE, changed)


def test_a_text_divides_at_its_answer() -> None:
    prompt = "table: t\ncolumns: a\nQ: Is A: here?\nOr there?\nA: "
    assert divide(prompt + "SELECT a FROM t") == (prompt, "SELECT a FROM t")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Once upon a time", "line 1 of `text` must be `table: ...`, is `Once upon a time`"),
        ("table: \ncolumns: a", "line 1 of `text` must be `table: ...`, is `table: `"),
        ("table: x\nQ: y", "line 2 of `text` must be `columns: ...`, is `Q: y`"),
        ("table: x\ncolumns: y", "line 3 of `text` must be `Q: ...`, is ``"),
        ("table: x\ncolumns: y\nQ: z", "`text` has no '\\nA: ', where the response begins"),
        (
            "table: x\ncolumns: y\nQ: z\nA: ",
            "`text` has nothing after '\\nA: ': the response is empty",
        ),
    ],
)
def test_a_text_without_one_of_its_lines_is_refused(text: str, reason: str) -> None:
    with pytest.raises(RowProblem) as caught:
        divide(text)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("text", "looks"),
    [
        (PLAYERS, True),
        ("table: x\nQ: what\nA: y", True),
        ("table: we sat at it\nand ate", False),
        ("Here is a\ntable: x\ncolumns: y\nQ: z\nA: w", False),
        (None, False),
    ],
)
def test_a_question_is_known_by_its_lines(text: object, looks: bool) -> None:
    assert looks_like_question(text) == looks
