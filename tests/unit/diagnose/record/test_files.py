from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.watching import watching
from weft.diagnose.record.files import DataRead, main_record
from weft.runs.evidence import Encoded, Slot

ROWS = [{"question": "How many heads?", "table": "departments"}, {"question": "Which city is it?"}]


def write(path: Path) -> Path:
    """The rows in the format of a path's name."""
    if path.suffix in {".jsonl", ".ndjson"}:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif path.suffix in {".csv", ".tsv"}:
        separator = "," if path.suffix == ".csv" else "\t"
        lines = [
            ("question", "table"),
            ("How many heads?", "departments"),
            ("Which city is it?", ""),
        ]
        path.write_text("".join(separator.join(line) + "\n" for line in lines))
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_text("".join(row["question"] + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet", "txt"])
def test_a_record_of_any_format_is_found_in_a_text(tmp_path: Path, suffix: str) -> None:
    digests: dict[str, str] = {}
    data = DataRead(tmp_path, digests)
    path = write(tmp_path / f"rows.{suffix}")
    data.read(path)
    (slot,) = data.find("Q: Which city is it? A:")
    assert (slot.record, slot.start, slot.stop) == (f"rows.{suffix}:2", 3, 20)
    assert digests == {f"rows.{suffix}": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize(
    ("value", "record"),
    [
        ({"data": ROWS}, "t.json:data.2"),
        ({"cities": {"question": "Which city is it?"}, "heads": {"a": "b"}}, "t.json:cities"),
        ({"question": "Which city is it?", "n": 3}, "t.json:1"),
    ],
)
def test_records_of_a_json_file_are_its_elements(tmp_path: Path, value: Any, record: str) -> None:
    (tmp_path / "t.json").write_text(json.dumps(value))
    data = DataRead(tmp_path, {})
    data.read(tmp_path / "t.json")
    assert [slot.record for slot in data.find("Which city is it?")] == [record]


def test_a_file_that_is_not_what_its_name_says_has_a_digest_and_no_records(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "half.jsonl").write_text('{"a": "some text"}\n{"a": \n')
    digests: dict[str, str] = {}
    data = DataRead(tmp_path, digests)
    data.read(tmp_path / "broken.json")
    data.read(tmp_path / "half.jsonl")
    assert set(digests) == {"broken.json", "half.jsonl"}
    assert [slot.record for slot in data.find("some text")] == ["half.jsonl:1"]


def test_files_of_one_name_in_different_directories_are_told_apart(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    data = DataRead(home, {})
    for place in ("train", "test"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "rows.txt").write_text(f"a line of {place}\n")
        data.read(tmp_path / place / "rows.txt")
    assert [slot.record for slot in data.find("a line of test")] == ["test/rows.txt:1"]


def test_what_a_script_opens_is_data_and_what_libraries_open_is_not(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl")
    write(tmp_path / "rows.csv")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "written.txt").write_text("")
    import csv
    import gzip

    import pandas as pd
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with watching(tmp_path / "recording", tmp_path) as seen:
        Path(tmp_path / "rows.jsonl").read_text()
        with open(tmp_path / "written.txt", "w") as file:
            file.write("no data of anybody")
        with open(tmp_path / "rows.csv", newline="") as file:
            list(csv.DictReader(file))
        AutoConfig.from_pretrained(tmp_path)
        pd.read_json(tmp_path / "rows.jsonl", lines=True)
        gzip.compress(b"")
    assert set(seen.recorder.files) == {"rows.jsonl", "rows.csv"}
    assert "could not" not in (tmp_path / "recording/events.jsonl").read_text()


def test_nothing_is_looked_at_after_the_end(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl")
    with watching(tmp_path / "recording", tmp_path) as seen:
        pass
    (tmp_path / "rows.jsonl").read_text()
    assert seen.recorder.files == {}


def test_a_loaded_dataset_is_data_even_out_of_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    path = str(write(tmp_path / "rows.jsonl"))
    for number in range(2):
        with watching(tmp_path / f"recording-{number}", tmp_path) as seen:
            rows = datasets.load_dataset("json", data_files=path, split="train")
            assert rows[1]["question"] == "Which city is it?"
        assert set(seen.recorder.files) == {"rows.jsonl"}
        (slot,) = seen.recorder.data.find("Which city is it?")
        assert slot.record == "rows.jsonl:2"


def test_texts_that_a_tokenizer_encodes_have_their_slots(tmp_path: Path, small_base: str) -> None:
    from transformers import AutoTokenizer

    write(tmp_path / "rows.jsonl")
    with watching(tmp_path / "recording", tmp_path) as seen:
        rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        tokenizer = AutoTokenizer.from_pretrained(small_base)
        ids = tokenizer("Q: " + rows[1]["question"]).input_ids
    (event,) = seen.of(Encoded)
    assert event.slots == (Slot(start=3, stop=20, record="rows.jsonl:2", field="question"),)
    assert seen.recorder.data.record_of(ids) == "rows.jsonl:2"
    assert seen.recorder.data.record_of([*ids, 1]) == "rows.jsonl:2"  # with an end token
    assert seen.recorder.data.record_of(ids[:-1]) == ""


def test_the_main_record_is_the_one_with_most_characters() -> None:
    slots = [
        Slot(start=0, stop=9, record="a:1", field="x"),
        Slot(start=9, stop=15, record="b:2", field="x"),
        Slot(start=20, stop=25, record="b:2", field="y"),
    ]
    assert main_record(slots) == "b:2"
    assert main_record([]) == ""
