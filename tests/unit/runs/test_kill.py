"""`kill -9` at any moment loses nothing, and a run has one writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weft.core.errors import InputError
from weft.runs.evidence import Event, Pass
from weft.runs.reader import RunReader
from weft.runs.recording import Recording, is_recording
from weft.runs.writer import RunWriter

TOY = [sys.executable, str(Path(__file__).with_name("toy_run.py"))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunReader:
    """The run that nothing interrupted."""
    root = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run([*TOY, "complete", root], check=True)
    return RunReader(root)


def recorded(reader: RunReader) -> tuple[tuple[Event, ...], list[int]]:
    """The events of a run's recording, and the numbers in their arrays."""
    recording = Recording(reader.layout.recording)
    assert recording.about.status == reader.manifest.status
    passes = [each for each in recording.events if isinstance(each, Pass)]
    return recording.events, [int(recording.array(each.ids)[0, 0]) for each in passes]


def test_killed_at_every_operation_then_resumed_is_the_whole_run(tmp_path, whole):
    subprocess.run([*TOY, "kill", tmp_path], check=True)
    roots = sorted(tmp_path.iterdir(), key=lambda root: int(root.name))
    assert len(roots) > 100

    known = whole.steps()
    for root in roots:
        if (root / "manifest.json").exists():
            reader = RunReader(root)  # what was killed can be read as it is
            assert reader.steps() == known[: len(reader.steps())]
            assert all(table.means()[0] > 0 for table in reader.tables().values())
            assert reader.manifest.name == "toy"
            assert not reader.done or reader.results("eval") == whole.results("eval")
            if is_recording(reader.layout.recording):
                events = Recording(reader.layout.recording).events
                assert events == recorded(whole)[0][: len(events)]

    subprocess.run([*TOY, "resume", tmp_path], check=True)
    for root in roots:
        reader = RunReader(root)
        assert reader.done, root
        assert reader.steps() == known
        assert reader.evidence() == whole.evidence()
        assert reader.results("eval") == whole.results("eval")
        assert reader.table_names() == whole.table_names()
        assert recorded(reader) == recorded(whole), root
        assert reader.manifest.notices == (), "atomic checkpoints are never damaged"
        evaluated = [e for e in reader.manifest.events if e["kind"] == "evaluated"]
        assert len(evaluated) == 1
        assert not list(root.rglob("*.tmp")), "leftovers of the kill"


@pytest.mark.slow
def test_killed_from_outside_again_and_again_still_ends_as_the_whole_run(tmp_path, whole):
    """Real kills around the steps of a slow run, each resumed from where the last one died."""
    root = tmp_path / "run"
    kills = 0
    for attempt in range(100):
        with subprocess.Popen([*TOY, "slowly", root], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            steps = [process.stdout.readline() for _ in range(1 + attempt % 4)]
            if b"" in steps:  # it ended by itself
                break
            time.sleep(0.002 * (attempt % 10))
            process.kill()
            kills += 1
    assert process.returncode == 0
    assert kills >= 3
    assert RunReader(root).done
    assert RunReader(root).steps() == whole.steps()
    assert RunReader(root).results("eval") == whole.results("eval")


def test_two_processes_cannot_write_one_run_and_a_kill_frees_it(tmp_path):
    root = tmp_path / "run"
    with subprocess.Popen([*TOY, "hold", root], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "holding\n"
            with pytest.raises(
                InputError, match=rf"\(pid {holder.pid}\) is writing .*run"
            ) as error:
                RunWriter.reopen(root)
            assert "wait until it ends" in error.value.hint
            with pytest.raises(InputError, match="is not empty"):
                RunWriter.create(root, RunReader(root).manifest)
            assert RunReader(root).steps() == [{"step": 1}], "a reader is not locked out"
        finally:
            os.kill(holder.pid, signal.SIGKILL)
    with RunWriter.reopen(root) as writer:
        assert next(writer.sound_checkpoints(), None) is None
        writer.resume_at(0)
        assert RunReader(root).steps() == []
