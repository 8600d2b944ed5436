"""One recording from beginning to end, around whatever runs inside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from weft.core.errors import InputError
from weft.core.files import sha256_file
from weft.diagnose.record.patching import Undo
from weft.diagnose.record.recorder import Ending, Recorder
from weft.diagnose.record.taps import install
from weft.runs.provenance import hardware, versions
from weft.runs.recording import About, RecordingWriter

Status = Literal["finished", "failed", "interrupted"]

_current: list[Recorder] = []


@contextmanager
def recording(root: Path, *, name: str, command: str, home: Path) -> Iterator[Recorder]:
    """Record what runs inside into `root`, which is new or empty.

    Whatever comes out of the block goes on unchanged, after the recording has been closed.
    """
    if _current:
        raise InputError(
            f"this process is being recorded already, into {_current[0].writer.root}",
            hint="leave out one of `weft record` and `weft.record()`",
        )
    began = time.perf_counter()
    about = About(
        source="script", name=name, command=command, versions=versions(), hardware=hardware()
    )
    recorder = Recorder(RecordingWriter(root, about, durable=False), home)
    undo = install(recorder)
    _current.append(recorder)
    facts: dict[str, Any] = {"status": "finished", "exit_code": 0}
    try:
        yield recorder
    except BaseException as error:
        facts = _ended(error)
        raise
    finally:
        _current.clear()
        facts["seconds"] = time.perf_counter() - began
        if recorder.at_home:  # a process that the script forked may leave by here, too
            _close(recorder, facts, undo)


def _close(recorder: Recorder, facts: dict[str, Any], undo: Undo) -> None:
    try:
        recorder.tell(Ending(facts["status"]))
    finally:
        recorder.stop()
        undo()
        with suppress(OSError):
            facts["files"] = _hashes(recorder) | recorder.files
            facts["overhead_seconds"] = recorder.overhead
            if recorder.lost:
                facts |= {"status": "failed", "error": recorder.lost}
            recorder.writer.finish(**facts)


def _ended(error: BaseException) -> dict[str, Any]:
    """How a script ended, by what came out of it."""
    if isinstance(error, GeneratorExit):  # a generator that holds the block is not gone on with
        return {"status": "finished", "exit_code": 0}
    if isinstance(error, KeyboardInterrupt):
        return {"status": "interrupted", "exit_code": 130}
    if isinstance(error, SystemExit):
        code = error.code
        number = 0 if code is None else code if isinstance(code, int) else 1
        said = {} if code is None or isinstance(code, int) else {"error": str(code)}
        return {"status": "failed" if number else "finished", "exit_code": number, **said}
    text = f"{type(error).__name__}: {error}"
    return {"status": "failed", "exit_code": 1, "error": text}


def _hashes(recorder: Recorder) -> dict[str, str]:
    found = {}
    for path in recorder.own_files():
        with suppress(OSError):
            found[recorder.named(path)] = sha256_file(path)
    return found
