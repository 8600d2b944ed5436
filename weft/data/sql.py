"""A question about a table with its query, in the public text format of WikiSQL.

    table: 1-2040-7
    columns: Bridge, No., Opened (year), River/Lake
    Q: Which river does bridge number 3 cross?
    A: SELECT River/Lake FROM 1-2040-7 WHERE No. = 3

Column names stand in a query without quotes and may hold spaces, signs and words such as FROM, so
a query can be read only beside its own `columns:` line. A name may even hold the comma that
separates names there: what stands between separators, one piece or several, counts as a name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from weft.data.rows import RowProblem

LABELS = ("table:", "columns:", "Q:")
"""How the first lines of a text begin, in this order."""
ANSWER = "\nA: "
"""What stands between the question and the query; it belongs to the prompt."""

AGGREGATIONS = ("COUNT", "MAX", "MIN", "SUM", "AVG")
SHOWN = 60
"""Longest part of a query that a message repeats."""

_OPERATOR = re.compile(r" ([=<>]) ")
_FROM = re.compile("(?<= )FROM(?= )", re.IGNORECASE)  # neighbours may share a space: From FROM
_WHERE = re.compile(" WHERE ", re.IGNORECASE)
_AND = re.compile("(?<= )AND(?= )", re.IGNORECASE)
_AGGREGATED = re.compile(rf"({'|'.join(AGGREGATIONS)}) (.+)", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")
_PIECES = re.compile(
    r"(?P<quoted>'.*?'(?=\s+AND\s|\s*$))|(?P<space>\s+)"
    rf"|(?P<keyword>\b(?:SELECT|FROM|WHERE|AND|{'|'.join(AGGREGATIONS)})\b)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Condition:
    """One comparison of a column with a value; a number is its digits, quoted or not."""

    column: str
    operator: str
    value: str


@dataclass(frozen=True)
class Query:
    """The logical form of a query. Names and values are in small letters with single spaces."""

    column: str
    aggregation: str | None
    conditions: frozenset[Condition]


@dataclass(frozen=True)
class Table:
    """The table of a row, as the lines above its question give it."""

    name: str
    columns: str

    @classmethod
    def of(cls, prompt: str) -> Self:
        """The table of a prompt: its first two lines."""
        name, columns, *_ = prompt.split("\n", 2)
        return cls(*(_squeezed(line.partition(":")[2]) for line in (name, columns)))

    def has(self, column: str) -> bool:
        """Whether the table has a column of this name, in whatever letter case."""
        return f", {_name(column)}, " in f", {_name(self.columns)}, "

    def parse(self, text: str) -> Query:
        """The logical form of a query of this table.

        Raises `RowProblem` with what the query names and what the table has.
        """
        query = _squeezed(text)
        if not query.upper().startswith("SELECT "):
            raise RowProblem(f"the query does not begin with SELECT: {_short(query)}")
        selected, where = self._divide(query[len("SELECT ") :])
        aggregation, column = self._aggregated(selected)
        if not self.has(column):
            raise self._lacks("selects", column)
        conditions = frozenset(self._conditions(where) if where is not None else ())
        return Query(_name(column), aggregation, conditions)

    def _divide(self, query: str) -> tuple[str, str | None]:
        """What stands before FROM and the table's name, and what after WHERE."""
        places = [(found.start() - 1, found.end() + 1) for found in _FROM.finditer(query)]
        if not places:
            raise RowProblem(f"the query has no FROM: {_short(query)}")
        for start, end in places:
            name, *where = _WHERE.split(query[end:], maxsplit=1)
            if _folded(name) == _folded(self.name):
                return query[:start], where[0] if where else None
        selected = _WHERE.split(query, maxsplit=1)[0]
        end = max((end for _, end in places if end < len(selected)), default=places[0][1])
        name = _WHERE.split(query[end:], maxsplit=1)[0]
        raise RowProblem(f"the query reads FROM {_short(name)}, and the row's table is {self.name}")

    def _aggregated(self, selected: str) -> tuple[str | None, str]:
        """The aggregation, where there is one, and the name of the column."""
        found = _AGGREGATED.fullmatch(selected)
        if found and (self.has(found[2]) or not self.has(selected)):
            return found[1].upper(), found[2]
        return None, selected

    def _conditions(self, where: str) -> tuple[Condition, ...]:
        """What AND joins. Names and values may hold an AND, so the shortest that read are taken."""
        ands = [(found.start() - 1, found.end() + 1) for found in _AND.finditer(where)]
        starts = [0, *(end for _, end in ands)]
        stops = [*(start for start, _ in ands), len(where)]
        read: dict[int, tuple[Condition, ...]] = {0: ()}  # by the number of pieces that are read
        for i, start in enumerate(starts):
            for j in range(i, len(stops)) if i in read else ():
                if condition := self._condition(where[start : stops[j]]):
                    read[j + 1] = (*read[i], condition)
        if len(starts) not in read:
            last = max(read)
            raise self._unreadable(where[starts[last] : stops[last]])
        return read[len(starts)]

    def _condition(self, piece: str) -> Condition | None:
        for found in _OPERATOR.finditer(piece):
            column, value = piece[: found.start()], _value(piece[found.end() :])
            if value is not None and self.has(column):
                return Condition(_name(column), found[1], value)
        return None

    def _unreadable(self, piece: str) -> RowProblem:
        """What is wrong with a piece that is no condition."""
        found = _OPERATOR.search(piece)
        if found is None:
            return RowProblem(f"a condition has none of =, < and >: {_short(piece)}")
        if not self.has(piece[: found.start()]):
            return self._lacks("filters", piece[: found.start()])
        value = _short(piece[found.end() :])
        return RowProblem(f"a value is neither a number nor in single quotes: {value}")

    def _lacks(self, verb: str, column: str) -> RowProblem:
        return RowProblem(
            f"the query {verb} {_short(column)}, and the row's columns are {self.columns}"
        )


def divide(text: str) -> tuple[str, str]:
    """A text as prompt, which ends with "A: ", and query; `RowProblem` where a line is missing."""
    lines = text.split("\n", len(LABELS))
    for number, label in enumerate(LABELS):
        line = lines[number] if number < len(lines) else ""
        if not line.startswith(label) or not line.removeprefix(label).strip():
            raise RowProblem(
                f"line {number + 1} of `text` must be `{label} ...`, is {_short(line)}"
            )
    question, answer, query = text.partition(ANSWER)
    if not answer:
        raise RowProblem(f"`text` has no {ANSWER!r}, where the response begins")
    if not query.strip():
        raise RowProblem(f"`text` has nothing after {ANSWER!r}: the response is empty")
    return question + answer, query


def looks_like_question(text: object) -> bool:
    """Whether a text is meant to be of this format, sound or not."""
    if not isinstance(text, str) or not text.startswith(LABELS[0]):
        return False
    return any(f"\n{label}" in text for label in LABELS[1:])


def logical_form(prompt: str, reference: str, text: str) -> bool:
    """Whether a text selects the same column, aggregated alike, under the same conditions.

    As in WikiSQL's own logical-form accuracy, the order of conditions and letter case do not
    matter, nor do spaces and quotes around numbers. Another table is another query, and a text
    that is no query of this table matches nothing.
    """
    table = Table.of(prompt)
    try:
        return table.parse(text) == table.parse(reference)
    except RowProblem:
        return False


def exact_match(prompt: str, reference: str, text: str) -> bool:
    """Whether a text is the reference, but for spaces and the case of keywords."""
    return normalised(text) == normalised(reference)


def normalised(query: str) -> str:
    """One space for white space and keywords in capitals; what stands in quotes is kept."""

    def piece(match: re.Match[str]) -> str:
        if match["quoted"]:
            return match["quoted"]
        return " " if match["space"] else match["keyword"].upper()

    return _PIECES.sub(piece, query.strip())


def _value(text: str) -> str | None:
    """A value without its quotes; None where it is neither a number nor in quotes."""
    if len(text) > 1 and text[0] == text[-1] == "'":
        return _folded(text[1:-1])
    return text if _NUMBER.fullmatch(text) else None


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _folded(text: str) -> str:
    return _squeezed(text).casefold()


def _name(text: str) -> str:
    """A column's name, or several: after a comma may stand a space or none."""
    return ", ".join(piece.strip() for piece in _folded(text).split(","))


def _short(text: str) -> str:
    return f"`{text}`" if len(text) <= SHOWN else f"`{text[:SHOWN]}...`"
