"""Texts are appended to a run, unless somebody writes it."""

from __future__ import annotations

import pytest

from weft.core.errors import WeftError
from weft.runs.layout import RunLayout
from weft.runs.manifest import Manifest
from weft.runs.reader import RunReader
from weft.runs.samples import add_samples
from weft.runs.writer import RunWriter


@pytest.fixture
def run(tmp_path):
    with RunWriter.create(tmp_path / "run", Manifest(name="toy")) as writer:
        writer.sample({"text": "of the run"})
        writer.finish("finished")
    return tmp_path / "run"


def test_texts_come_after_those_that_are_there(run):
    assert add_samples(run, [{"text": "b"}, {"text": "c"}])
    assert add_samples(run, [{"text": "d"}])
    assert [s["text"] for s in RunReader(run).samples()] == ["of the run", "b", "c", "d"]
    assert RunReader(run).done


def test_a_torn_line_does_not_spoil_the_next(run):
    with RunLayout(run).samples.open("a") as file:
        file.write('{"text": "to')
    assert add_samples(run, [{"text": "b"}])
    assert [s["text"] for s in RunReader(run).samples()] == ["of the run", "b"]


def test_a_run_that_is_being_written_is_left_alone(tmp_path):
    with RunWriter.create(tmp_path / "run", Manifest(name="toy")) as writer:
        assert not add_samples(tmp_path / "run", [{"text": "b"}])
        assert not writer.layout.samples.exists()
        writer.finish("interrupted")
    assert add_samples(tmp_path / "run", [{"text": "b"}])


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeftError, match=r"samples\.jsonl"):
        add_samples(tmp_path / "file", [{"text": "b"}])
