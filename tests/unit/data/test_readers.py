"""Rows out of files, and everything that can be wrong with one."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weft.core.errors import InputError
from weft.data.readers import read_rows

ROWS = [{"text": "one"}, {"text": "zwei: ü"}, {"text": "three", "n": 3}]


def values(path: Path) -> list[tuple[int, dict[str, Any]]]:
    reading = read_rows(path)
    assert reading.bad == []
    return [(row.line, row.value) for row in reading.rows]


def problems(path: Path) -> list[str]:
    return [str(bad).removeprefix(str(path)) for bad in read_rows(path).bad]


def test_jsonl(write_rows: Callable[..., Path]) -> None:
    assert values(write_rows(*ROWS)) == list(enumerate(ROWS, start=1))


def test_blank_lines_are_counted_and_keep_the_numbering(write_rows: Callable[..., Path]) -> None:
    reading = read_rows(write_rows(ROWS[0], "", "  ", ROWS[1], ""))
    assert [row.line for row in reading.rows] == [1, 4]
    assert reading.blank == 3


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False), encoding="utf-8")
    assert values(path) == [(1, {"text": "a\u2028b\x85c"})]


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n')
    assert values(path) == [(1, {"text": "a"}), (2, {"text": "b"})]


def test_every_bad_line_is_found(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'{"text": "fine"}\n'
        b'{"text": "torn\n'
        b'{"text": "caf\xe9"}\n'
        b'["not", "an", "object"]\n'
        b'{"text": 1} {"text": 2}\n'
        b'{"text": "fine"}\n'
    )
    assert problems(path) == [
        ":2: broken JSON: Invalid control character at (column 15)",
        ":3: not UTF-8: byte 0xe9 at column 14",
        ':4: a row must be a JSON object, is ["not", "an", "object"]',
        ":5: broken JSON: Extra data (column 13)",
    ]
    assert [row.line for row in read_rows(path).rows] == [1, 6]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"n": ' + "9" * 5000 + "}"])
def test_json_beyond_pythons_limits_is_a_bad_row(
    write_rows: Callable[..., Path], line: str
) -> None:
    (problem,) = problems(write_rows(line))
    assert problem.startswith(":1: broken JSON: ")
    (problem,) = problems(write_rows(f"[{line}]", name="rows.json"))
    assert problem.startswith(":1: broken JSON: ")


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"data": rows, "version": 1}])
def test_json_is_a_list_or_has_one_under_data(
    tmp_path: Path, wrap: Callable[[list[Any]], Any]
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(wrap(ROWS), indent=1), encoding="utf-8")
    assert values(path) == list(enumerate(ROWS, start=1))


def test_bad_json_files_give_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "a"},\n {"text": }]')
    assert problems(path) == [":2: broken JSON: Expecting value (column 11)"]
    path.write_bytes(b'[{"text": "a"},\n\n {"text": "\xff"}]')
    assert problems(path) == [":3: not UTF-8: byte 0xff at column 12"]
    path.write_text('[{"text": "a"}, 7]')
    assert problems(path) == [":2: a row must be a JSON object, is 7"]


def test_a_json_file_of_one_object_is_no_list_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"text": "a"}')
    with pytest.raises(InputError, match="holds neither a list of rows nor"):
        read_rows(path)


def test_glue_tables(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_text("sentence\tlabel\nit 's \"great\t1\nno\nbad\t0\n")
    reading = read_rows(path)
    assert [row.value for row in reading.rows] == [
        {"sentence": "it 's \"great", "label": 1},
        {"sentence": "bad", "label": 0},
    ]
    assert problems(path) == [":3: 1 columns, and the header has 2"]


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    rows = [{"text": "one", "ids": [1, 2]}, {"text": None, "ids": []}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert values(path) == list(enumerate(rows, start=1))


def test_a_parquet_row_that_is_not_utf8_is_bad_and_its_neighbours_are_not(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    texts = pa.array([b"one", b"caf\xe9", b"three"]).view(pa.string())
    pq.write_table(pa.table({"text": texts}), path)
    assert problems(path) == [":2: not UTF-8: byte 0xe9 at column 4"]
    assert [(row.line, row.value) for row in read_rows(path).rows] == [
        (1, {"text": "one"}),
        (3, {"text": "three"}),
    ]


def test_what_only_looks_like_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    path.write_text("no parquet")
    with pytest.raises(InputError) as caught:
        read_rows(path)
    assert str(path) in caught.value.problem
    assert caught.value.hint == "is it a Parquet file?"


def test_a_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3], "labels": [3]}]
    folder = tmp_path / "saved"
    datasets.Dataset.from_list(rows).save_to_disk(folder)
    assert values(folder) == list(enumerate(rows, start=1))


@pytest.mark.parametrize(
    ("package", "name"), [("pyarrow", "rows.parquet"), ("datasets", "saved/state.json")]
)
def test_a_missing_package_is_named_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    real = builtins.__import__

    def without(wanted: str, *args: Any, **kwargs: Any) -> Any:
        if wanted.split(".")[0] == package:
            raise ImportError(wanted)
        return real(wanted, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError) as caught:
        read_rows(path if path.suffix == ".parquet" else path.parent)
    assert f"needs the package `{package}`" in caught.value.problem
    assert caught.value.hint == "pip install 'weft[data]'"


def test_other_endings_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b")
    with pytest.raises(InputError, match=r"does not end in \.jsonl, \.json, \.parquet, \.tsv"):
        read_rows(path)


def test_a_file_that_cannot_be_opened_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*gone\.jsonl: No such file"):
        read_rows(tmp_path / "gone.jsonl")
