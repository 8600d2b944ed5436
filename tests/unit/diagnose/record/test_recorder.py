from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path

import pytest

import weft
from weft.diagnose.record.recorder import Ending, Recorder
from weft.runs.evidence import Notice, Seeded
from weft.runs.recording import About, Recording, RecordingWriter


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    writer = RecordingWriter(tmp_path / "r", About(source="script", name="test"))
    return Recorder(writer, Path(__file__).parent)


def notices(recorder: Recorder) -> list[str]:
    events = Recording(recorder.writer.root).events
    return [event.text for event in events if isinstance(event, Notice)]


def test_what_looking_does_is_not_looked_at(recorder):
    assert recorder.watching
    with recorder.aside():
        assert not recorder.watching
        with recorder.aside():
            assert not recorder.watching
        assert not recorder.watching
    assert recorder.watching


def test_another_thread_is_looked_at_meanwhile(recorder):
    seen = []
    with recorder.aside():
        thread = threading.Thread(target=lambda: seen.append(recorder.watching))
        thread.start()
        thread.join()
    assert seen == [True]


def test_an_error_of_looking_becomes_a_notice_once_for_each_place(recorder):
    for _ in range(3):
        with recorder.aside():
            raise ValueError("odd shape")
    assert recorder.watching
    (text,) = notices(recorder)
    assert "could not observe: ValueError: odd shape (test_recorder.py:" in text


def test_ctrl_c_while_looking_is_the_scripts(recorder):
    with pytest.raises(KeyboardInterrupt), recorder.aside():
        raise KeyboardInterrupt
    assert recorder.watching


def test_a_disk_that_takes_no_more_ends_the_recording_and_not_the_script(recorder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder.writer, "add", full)
    with recorder.aside():
        recorder.emit(Seeded(library="torch", seed=1))
    assert not recorder.watching


def test_time_spent_looking_is_counted_once(recorder):
    with recorder.aside():
        time.sleep(0.02)
        with recorder.aside():
            time.sleep(0.02)
    assert 0.04 <= recorder.overhead < 0.06 + 0.2


def test_a_line_of_the_users_code_is_found_below_those_of_libraries(recorder):
    line = sys._getframe().f_lineno + 1
    (place,) = map(lambda _: recorder.where(), [0])
    assert place == f"test_recorder.py:{line}"


def test_code_of_libraries_is_nobodys_own(recorder):
    import numpy

    assert not recorder.is_own(numpy.__file__)
    assert not recorder.is_own(os.__file__)
    assert not recorder.is_own("<frozen runpy>")
    assert recorder.is_own(__file__)


def test_a_forked_process_is_not_the_script(recorder):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"1" if recorder.watching else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b"0"
    os.close(reading)
    os.close(writing)


def test_one_listener_that_fails_does_not_keep_others_from_being_told(recorder):
    told = []
    recorder.listen(Ending, lambda signal: 1 / 0)
    recorder.listen(Ending, told.append)
    recorder.tell(Ending("finished"))
    assert told == [Ending("finished")] or [each.status for each in told] == ["finished"]
    assert "ZeroDivisionError" in notices(recorder)[0]


def test_a_recording_that_cannot_be_written_on_says_so(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("no space left")

    with weft.record(tmp_path / "r"):
        monkeypatch.setattr(RecordingWriter, "add", full)
        random.seed(1)
    about = Recording(tmp_path / "r").about
    assert about.status == "failed"
    assert "could not be written to its end: no space left" in (about.error or "")
