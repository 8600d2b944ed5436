from __future__ import annotations

import json
import subprocess

import pytest

from weft.runs import provenance
from weft.runs.provenance import code_state, hardware, versions


def git(directory, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / ".gitignore").write_text("env/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_versions_and_hardware_are_plain_json():
    assert {"python", "numpy", "torch"} <= versions().keys()
    facts = json.loads(json.dumps(hardware()))
    assert facts["cpu"]
    assert facts["usable_cores"] >= 1
    assert facts["ram_bytes"] > 2**20


def test_clean_checkout(checkout):
    state = code_state(checkout)
    assert len(state.head) == 40
    assert (state.dirty, state.diff) == (False, "")


def test_change_and_new_file_are_seen(checkout):
    before = code_state(checkout)
    (checkout / "code.py").write_text("x = 2\n")
    state = code_state(checkout)
    assert state.dirty
    assert "+x = 2" in state.diff
    assert state.head == before.head
    assert state.sha256 != before.sha256
    git(checkout, "checkout", "code.py")
    (checkout / "new.py").touch()
    assert code_state(checkout).dirty
    assert code_state(checkout).sha256 != before.sha256


def test_installed_into_somebody_elses_checkout(checkout):
    installed = checkout / "env" / "weft"
    installed.mkdir(parents=True)
    (installed / "code.py").touch()
    assert code_state(installed).head is None


def test_no_git_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (tmp_path / "code.py").touch()
    state = code_state(tmp_path)
    assert (state.head, state.dirty, state.diff) == (None, None, "")
    assert len(state.sha256) == 64


def test_weft_itself_has_a_state():
    assert len(code_state().sha256) == 64


def test_unknown_machine_is_no_error(monkeypatch):
    monkeypatch.setattr(provenance.Path, "read_text", lambda path: "nothing known\n")
    monkeypatch.delattr(provenance.os, "sysconf", raising=False)
    monkeypatch.delattr(provenance.os, "sched_getaffinity", raising=False)
    assert hardware()["ram_bytes"] is None
    assert hardware()["usable_cores"]
