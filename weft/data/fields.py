"""Fields of a row, checked: what is wrong with one is a `RowProblem` that names it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from weft.data.rows import RowProblem


def text(row: dict[str, Any], name: str, where: str = "") -> str:
    """A field that must be text; `where` is put before its name in problems."""
    value = field(row, name, where)
    if not isinstance(value, str):
        raise RowProblem(f"field `{where}{name}` must be text, is {kind_of(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as e:
            raise RowProblem(
                f"field `{where}{name}` holds half a surrogate pair at character {e.start + 1}"
            ) from None
    return value


def response(row: dict[str, Any], name: str, where: str = "") -> str:
    """A text field that must say something."""
    value = text(row, name, where)
    if not value.strip():
        raise RowProblem(f"field `{where}{name}` is empty")
    return value


def field(row: dict[str, Any], name: str, where: str = "") -> Any:
    """A field that must be there."""
    if name not in row:
        raise RowProblem(f"field `{where}{name}` is missing (found: {names_of(row) or 'nothing'})")
    return row[name]


def names_of(fields: Iterable[str]) -> str:
    """Names of fields, for people."""
    return ", ".join(fields)


def kind_of(value: object) -> str:
    """What sort of value it is, in the words of JSON."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text"}
    kinds |= {list: "a list", dict: "an object", type(None): "null"}
    return kinds.get(type(value), type(value).__name__)
