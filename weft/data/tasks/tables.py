"""tables: answer a question about a table with SQL.

A row has one field, `text`:

    table: ...
    columns: ...
    Q: ...
    A: SELECT ...

The prompt goes up to and includes "A: "; the response is the query.
"""

from __future__ import annotations

import re
from typing import Any

from weft.data.rows import RowProblem
from weft.data.task import Task, bundled
from weft.data.templates import Format, Rendered, response

ANSWER = "\nA: "

_KEYWORDS = (
    "select|distinct|count|sum|avg|min|max|as|from|join|left|inner|on|where|and|or|not|in|is|null|"
    "like|between|group|order|by|having|asc|desc|limit"
)
_PIECES = re.compile(
    rf"(?P<quoted>'[^']*'|\"[^\"]*\")|(?P<keyword>\b(?:{_KEYWORDS})\b)|(?P<space>\s+)",
    re.IGNORECASE,
)


def render_tables(row: dict[str, Any]) -> Rendered:
    """The question as prompt and the query as response."""
    question, answer, query = response(row, "text").partition(ANSWER)
    if not answer:
        raise RowProblem(f"field `text` has no {ANSWER!r}, where the response begins")
    if not query.strip():
        raise RowProblem(f"field `text` has nothing after {ANSWER!r}: the response is empty")
    return Rendered(question + answer, query)


def normalise_sql(query: str) -> str:
    """One space for white space and keywords in capitals; what stands in quotes is kept."""

    def piece(match: re.Match[str]) -> str:
        if match["quoted"]:
            return match["quoted"]
        return " " if match["space"] else match["keyword"].upper()

    return _PIECES.sub(piece, query.strip())


TABLES = Task(
    "tables",
    Format("tables", ("text",), render_tables),
    "exact_match",
    normalise_sql,
    bundled("tables"),
)
