"""Rows out of files. Everything wrong with a file is collected; nothing stops at the first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from weft.core.errors import InputError
from weft.data.rows import BadRow, Reading, Row, RowProblem

Numbered = Iterator[tuple[int, dict[str, Any] | RowProblem | None]]
"""Line and row; a problem instead of a row that cannot be read; None for a blank line."""


def read_rows(path: Path, origin: str = "train") -> Reading:
    """All rows of a file, or of a dataset folder saved by Hugging Face `datasets`."""
    reading = Reading(origin)
    file = str(path)
    try:
        for line, value in _reader(path)(path):
            if value is None:
                reading.blank += 1
            elif isinstance(value, RowProblem):
                reading.bad.append(BadRow(file, line, str(value)))
            else:
                reading.rows.append(Row(file, line, value))
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror or e}") from e
    return reading


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder is one dataset written by `Dataset.save_to_disk`."""
    return (path / "state.json").is_file()


def _reader(path: Path) -> Callable[[Path], Numbered]:
    if is_saved_dataset(path):
        return _saved_dataset
    if path.suffix not in READERS:
        raise InputError(
            f"cannot read {path}: its name does not end in {', '.join(READERS)}",
            hint="a folder must hold train, valid and test files, or be a saved dataset",
        )
    return READERS[path.suffix]


def _jsonl(path: Path) -> Numbered:
    for number, line in _lines(path):
        yield number, _json_line(line) if line.strip() else None


def _json_line(line: bytes) -> dict[str, Any] | RowProblem:
    try:
        return _object(json.loads(line.decode()))
    except UnicodeDecodeError as e:
        return RowProblem(_not_utf8(e))
    except json.JSONDecodeError as e:
        return RowProblem(_broken_json(e))
    except (ValueError, RecursionError) as e:  # a number or a nesting beyond Python's limits
        return RowProblem(f"broken JSON: {e}")


def _json(path: Path) -> Numbered:
    data = path.read_bytes()
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        yield e.object.count(b"\n", 0, e.start) + 1, RowProblem(_not_utf8(e))
        return
    except json.JSONDecodeError as e:
        yield e.lineno, RowProblem(_broken_json(e))
        return
    except (ValueError, RecursionError) as e:  # a number or a nesting beyond Python's limits
        yield 1, RowProblem(f"broken JSON: {e}")
        return
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    if not isinstance(value, list):
        raise InputError(
            f'{path} holds neither a list of rows nor {{"data": [...]}}',
            hint="a file with one row a line must end in .jsonl",
        )
    for number, row in enumerate(value, start=1):
        yield number, _object(row)


def _parquet(path: Path) -> Numbered:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as e:
        raise _needs("pyarrow", path) from e
    try:
        with pq.ParquetFile(path) as file:
            yield from _numbered(file.iter_batches())
    except pa.ArrowInvalid as e:
        raise InputError(f"cannot read {path}: {e}", hint="is it a Parquet file?") from e


def _saved_dataset(path: Path) -> Numbered:
    try:
        import datasets
    except ImportError as e:
        raise _needs("datasets", path) from e
    try:
        saved = datasets.load_from_disk(str(path)).with_format("arrow")
    except (ValueError, KeyError, TypeError) as e:
        raise InputError(f"cannot read the saved dataset {path}: {e}") from e
    yield from _numbered(saved.iter(batch_size=1000))


def _tsv(path: Path) -> Numbered:
    """A header and tab-separated columns, as in GLUE; a `label` of digits is a number."""
    header: list[str] = []
    for number, line in _lines(path):
        try:
            cells = line.decode().rstrip("\r\n").split("\t")
        except UnicodeDecodeError as e:
            yield number, RowProblem(_not_utf8(e))
            continue
        if not header:
            header = cells
        elif not line.strip():
            yield number, None
        elif len(cells) != len(header):
            yield number, RowProblem(f"{len(cells)} columns, and the header has {len(header)}")
        else:
            row: dict[str, Any] = dict(zip(header, cells, strict=True))
            if row.get("label", "").isdecimal():
                row["label"] = int(row["label"])
            yield number, row


READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".tsv": _tsv,
}


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            # some editors begin a file with a byte order mark
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _numbered(batches: Iterable[Any]) -> Numbered:
    """The rows of Arrow tables or batches."""
    yield from enumerate((row for batch in batches for row in _arrow_rows(batch)), start=1)


def _arrow_rows(batch: Any) -> list[dict[str, Any] | RowProblem]:
    """All rows of a batch; one by one where a text is not UTF-8, which Arrow does not check."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_arrow_row(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _arrow_row(batch: Any) -> dict[str, Any] | RowProblem:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as e:
        return RowProblem(_not_utf8(e))


def _object(value: object) -> dict[str, Any] | RowProblem:
    if isinstance(value, dict):
        return value
    return RowProblem(f"a row must be a JSON object, is {json.dumps(value)[:40]}")


def _not_utf8(error: UnicodeDecodeError) -> str:
    column = error.start - error.object.rfind(b"\n", 0, error.start)
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at column {column}"


def _broken_json(error: json.JSONDecodeError) -> str:
    return f"broken JSON: {error.msg} (column {error.colno})"


def _needs(package: str, path: Path) -> InputError:
    return InputError(
        f"reading {path} needs the package `{package}`, which is not installed",
        hint="pip install 'weft[data]'",
    )
