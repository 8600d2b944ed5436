"""A recorder with some taps around code of a test, and the events that it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from weft.diagnose.record import (
    adapters,
    draws,
    files,
    generate,
    loops,
    merging,
    passes,
    tokenizers,
    trainers,
    training,
)
from weft.diagnose.record.patching import together
from weft.diagnose.record.recorder import Ending, Recorder
from weft.runs.evidence import Notice, Part
from weft.runs.recording import About, Recording, RecordingWriter

PartT = TypeVar("PartT", bound=Part)
TAPS = (
    files,
    tokenizers,
    draws,
    passes,
    loops,
    generate,
    training,
    trainers,
    merging,
    adapters,
)


@dataclass(frozen=True)
class Watched:
    """What was written down."""

    root: Path
    recorder: Recorder

    def of(self, kind: type[PartT]) -> list[PartT]:
        """Events of one kind; nothing must have gone wrong while looking."""
        events = Recording(self.root).events
        failed = [e.text for e in events if isinstance(e, Notice) and "could not" in e.text]
        assert not failed, failed
        return [event for event in events if isinstance(event, kind)]


@contextmanager
def watching(root: Path, home: Path | None = None) -> Iterator[Watched]:
    """Look at what runs inside; `home` is the directory of the script that it would be."""
    home = Path(__file__).parents[1] if home is None else home
    recorder = Recorder(RecordingWriter(root, About(source="script", name="test")), home)
    undo = together([tap.install(recorder) for tap in TAPS])
    try:
        yield Watched(root, recorder)
        recorder.tell(Ending("finished"))
    finally:
        recorder.stop()
        undo()
        recorder.writer.finish(status="finished")
