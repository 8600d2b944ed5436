from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from weft.core.errors import InputError, NumericError, WeftError
from weft.core.files import (
    append_jsonl,
    atomic_dir,
    read_json,
    read_jsonl,
    remove_dir,
    remove_leftovers,
    sha256_file,
    truncate_jsonl,
    write_atomic,
    write_json,
)


def fail_with(code: int):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return fail


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_write_makes_parents_and_leaves_only_the_file(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_text() == "two"
    assert names(path.parent) == ["b.txt"]


def test_write_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", "x")
        with atomic_dir(tmp_path / "dir"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "dir").stat().st_mode) == 0o750


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_full_disk_keeps_the_old_file_and_names_the_path(tmp_path, monkeypatch, call):
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})
    monkeypatch.setattr(os, call, fail_with(errno.ENOSPC))
    with pytest.raises(WeftError, match=r"cannot write .*state\.json: No space left") as caught:
        write_json(path, {"step": 2})
    assert "make room" in caught.value.hint
    assert read_json(path) == {"step": 1}
    assert names(tmp_path) == ["state.json"]


def test_missing_permission_has_its_own_hint(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", fail_with(errno.EACCES))
    with pytest.raises(WeftError) as caught:
        write_atomic(tmp_path / "file", "x")
    assert "permissions" in caught.value.hint


def test_json_is_sorted_readable_and_exact(tmp_path):
    path = tmp_path / "x.json"
    value = {"b": 0.1 + 0.2, "a": [np.float32(0.1), np.int64(3)], "path": Path("p"), "text": "é"}
    write_json(path, value)
    assert path.read_text("utf-8").startswith('{\n  "a": [\n')
    assert path.read_text("utf-8").endswith("}\n")
    assert "é" in path.read_text("utf-8")
    assert read_json(path) == {
        "a": [float(np.float32(0.1)), 3],
        "b": 0.30000000000000004,
        "path": "p",
        "text": "é",
    }


def test_json_order_can_be_kept(tmp_path):
    write_json(tmp_path / "x.json", {"b": 1, "a": 2}, sort_keys=False)
    assert list(read_json(tmp_path / "x.json")) == ["b", "a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_not_finite_is_refused_by_name(tmp_path, value):
    with pytest.raises(NumericError, match=r"eval\.loss\[1\] \((nan|inf)\) .*x\.json"):
        write_json(tmp_path / "x.json", {"eval": {"loss": [1.0, value]}})
    assert names(tmp_path) == []


def test_half_a_surrogate_pair_survives(tmp_path):
    append_jsonl(tmp_path / "x.jsonl", {"text": "a\ud800b"})
    assert read_jsonl(tmp_path / "x.jsonl") == [{"text": "a\ud800b"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b": }', r"x\.json, line 2, column 7: not valid JSON"),
        (b"", r"x\.json, line 1, column 1"),
        (b"\xff\xfe{", r"x\.json is not a UTF-8 text file"),
    ],
)
def test_broken_json_says_where(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(path)


def test_missing_json_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_json(tmp_path / "x.json")


def test_directory_appears_whole(tmp_path):
    path = tmp_path / "adapter"
    with atomic_dir(path) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("1")
        assert not path.exists()
    assert (path / "sub" / "file").read_text() == "1"
    assert names(tmp_path) == ["adapter"]


def test_directory_replaces_the_old_one(tmp_path):
    for content in ("old", "new"):
        with atomic_dir(tmp_path / "adapter") as temporary:
            (temporary / content).touch()
    assert names(tmp_path / "adapter") == ["new"]
    assert names(tmp_path) == ["adapter"]


def test_failure_keeps_the_old_directory(tmp_path):
    with atomic_dir(tmp_path / "adapter") as temporary:
        (temporary / "old").touch()
    with pytest.raises(RuntimeError), atomic_dir(tmp_path / "adapter") as temporary:
        (temporary / "new").touch()
        raise RuntimeError
    assert names(tmp_path / "adapter") == ["old"]
    assert names(tmp_path) == ["adapter"]


def test_failure_leaves_no_parents_that_were_made_for_it(tmp_path):
    (tmp_path / "had").mkdir()
    for path in ("new/deep/adapter", "had/adapter"):
        with pytest.raises(RuntimeError), atomic_dir(tmp_path / path):
            raise RuntimeError
    assert names(tmp_path) == ["had"]


def test_full_disk_in_a_directory_names_it(tmp_path):
    with (
        pytest.raises(WeftError, match=r"cannot write .*adapter: No space"),
        atomic_dir(tmp_path / "adapter"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_remove_dir_ignores_what_is_not_there(tmp_path):
    remove_dir(tmp_path / "none")
    (tmp_path / "some").mkdir()
    remove_dir(tmp_path / "some")
    assert names(tmp_path) == []


def test_leftovers_go_and_the_rest_stays(tmp_path):
    (tmp_path / ".state.json.0123456789ab.tmp").touch()
    (tmp_path / ".step-3.0123456789ab.tmp").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / "data.tmp").touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".lock", "data.tmp"]


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x").startswith("ba7816bf8f01cfea")


def test_lines_go_out_and_come_back(tmp_path):
    path = tmp_path / "a" / "steps.jsonl"
    assert read_jsonl(path) == []
    records = [{"step": step, "text": "line\nbreak\u2028"} for step in range(3)]
    for record in records:
        append_jsonl(path, record)
    assert read_jsonl(path) == records


@pytest.mark.parametrize("tail", [b'{"step": 3', b'{"step": 3}', b"\x00\x00\x00\n", b'{"a": "\xc3'])
def test_torn_last_line_is_dropped_and_cut(tmp_path, tail):
    path = tmp_path / "steps.jsonl"
    whole = b'{"step": 1}\n{"step": 2}\n'
    path.write_bytes(whole + tail)
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    truncate_jsonl(path)
    assert path.read_bytes() == whole


def test_broken_line_in_the_middle_is_not_hidden(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"steps\.jsonl, line 2: not valid JSON"):
        read_jsonl(path)


def test_truncate_keeps_lines_byte_for_byte(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text('{"step":1}\n{ "step": 2 }\n{"step": 3}\n')
    truncate_jsonl(path, lambda record: record["step"] <= 2)
    assert path.read_text() == '{"step":1}\n{ "step": 2 }\n'
    truncate_jsonl(tmp_path / "none.jsonl")
    assert names(tmp_path) == ["steps.jsonl"]


def test_disk_that_fills_within_a_line_loses_only_that_line(tmp_path):
    """A real limit, in a process of its own: the write is short, then it fails."""
    path = tmp_path / "steps.jsonl"
    code = """
import resource, signal, sys
from pathlib import Path
from weft.core.errors import WeftError
from weft.core.files import append_jsonl
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
step = 0
try:
    while True:
        append_jsonl(Path(sys.argv[1]), {"step": step, "text": "x" * 50})
        step += 1
except WeftError as error:
    print(step, error.problem)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    written, _, problem = done.stdout.partition(" ")
    assert f"cannot write {path}" in problem
    assert path.read_bytes().endswith(b"\n")
    assert [record["step"] for record in read_jsonl(path)] == list(range(int(written)))
    append_jsonl(path, {"step": "room again"})
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": "room again"}
