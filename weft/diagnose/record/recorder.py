"""The recorder: what taps see becomes events, and nothing that it does reaches the script.

A tap replaces a function of a library with one that calls it and looks at what went in and out.
Whatever looks runs `with recorder.aside():`, so that it is not observed itself, its time is
counted, and an error in it becomes a notice instead of the script's.

Taps speak to each other in signals, values of the classes below: one tells, others listen.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from weft.runs.evidence import Event, Notice, Pass, Slot
from weft.runs.recording import RecordingWriter

if TYPE_CHECKING:
    import torch

    from weft.diagnose.record.calls import Call
    from weft.diagnose.record.files import DataRead
    from weft.diagnose.record.models import Models

SignalT = TypeVar("SignalT")

PACKAGE = Path(__file__).parents[2]
"""The code of Weft, which is nobody's own code."""


@dataclass(frozen=True, eq=False)
class ModelSeen:
    """A model is about to be called for the first time."""

    model: str
    module: torch.nn.Module  # its root, without wrappers


@dataclass(frozen=True, eq=False)
class PassSeen:
    """A whole model was called, and its event is written. Tensors are the live ones, detached."""

    event: Pass
    module: torch.nn.Module  # the root of the model
    called: torch.nn.Module  # what the script called: the root or a wrapper of it
    ids: torch.Tensor | None  # [B, T]
    mask: torch.Tensor | None  # as given
    labels: torch.Tensor | None
    logits: torch.Tensor | None  # [B, V] at each row's last real position
    loss: torch.Tensor | None  # not detached: what backward may be called on
    output: Any
    call: Call | None = None
    follows: bool = False  # it goes on with the prompt of the pass before, however it is fed


@dataclass(frozen=True, eq=False)
class StepTaken:
    """An optimiser has stepped; `step` counts from 1. `recorder.steps` says the same."""

    step: int
    model: str


@dataclass(frozen=True, eq=False)
class Changed:
    """Something was done to a model or its adapter (merge, reset, load): look at it again."""

    what: str
    module: torch.nn.Module | None  # the root where it is known


@dataclass(frozen=True, eq=False)
class Ending:
    """The script is over. Listeners are told in the order of `TAPS`."""

    status: Literal["finished", "failed", "interrupted"]


class Recorder:
    """One recording in the making, in this process."""

    def __init__(self, writer: RecordingWriter, home: Path) -> None:
        """`home` is the directory of the script, below which its own code is named."""
        from weft.diagnose.record.files import DataRead
        from weft.diagnose.record.models import Models

        self.writer = writer
        self.home = home.resolve()
        self.models: Models = Models()
        self.steps = 0
        """Training steps taken so far; the training tap counts."""
        self.overhead = 0.0
        """Seconds spent looking."""
        self.files: dict[str, str] = {}
        """SHA-256 of files that the script read, by path."""
        self.slots: Callable[[str], tuple[Slot, ...]] = lambda text: ()
        """Which fields of data records a text has in it; the tap of files knows."""
        self.optimising = False
        """Whether an optimiser has been made; the training tap says so."""
        self.data: DataRead = DataRead(self.home, self.files)
        """Data that the script has read, and the slots of texts."""
        self.lost: str | None = None
        """Why it ended before the script did."""
        self.looking = threading.RLock()
        """Held while a model is looked at, so that no other thread begins to run it meanwhile."""
        self.running = 0
        """Calls of models that are going on, in all threads."""
        self._open = True
        self._lock = threading.RLock()
        self._thread = threading.local()
        self._noticed: set[str] = set()
        self._listeners: dict[type, list[Callable[[Any], None]]] = {}
        self._places: dict[str, str | None] = {}
        self._process = os.getpid()

    @property
    def watching(self) -> bool:
        """Whether a tap should look: not after the end, nor at what the recorder does itself, nor
        in a process that the script forked.
        """
        return self._open and not getattr(self._thread, "depth", 0) and self.at_home

    @property
    def at_home(self) -> bool:
        """Whether this is the process that is recorded, and not one that the script forked."""
        return os.getpid() == self._process

    @property
    def generating(self) -> int:
        """How many calls of `generate` this thread is in; the tap of `generate` counts."""
        return getattr(self._thread, "generating", 0)

    @generating.setter
    def generating(self, value: int) -> None:
        self._thread.generating = value

    def aside(self) -> _Aside:
        """Do something that is not observed, is timed, and cannot fail: `with recorder.aside():`.

        An exception inside ends the block and becomes a notice, once for each place it comes from.
        """
        return _Aside(self)

    def stop(self) -> None:
        """Look no more: wrappers that are still called only call what they wrap."""
        self._open = False

    def emit(self, event: Event, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Write an event, with the arrays that it names, and tell who listens to its class."""
        with self._lock:
            self.writer.add(event, arrays)
        self.tell(event)

    def notice(self, text: str) -> None:
        """Say once what could not be observed."""
        if text not in self._noticed:
            self._noticed.add(text)
            self.emit(Notice(text=text))

    def listen(self, signal: type[SignalT], act: Callable[[SignalT], None]) -> None:
        """Call `act` with every signal of a class, in the order in which listeners came."""
        self._listeners.setdefault(signal, []).append(act)

    def tell(self, signal: object) -> None:
        """Tell all listeners; one that fails does not keep the others from being told."""
        for act in self._listeners.get(type(signal), ()):
            with self.aside():
                act(signal)

    def where(self) -> str | None:
        """The line of the user's own code that is running, as `file.py:12`; None where none is."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            place = self._place(frame.f_code.co_filename)
            if place is not None:
                return f"{place}:{frame.f_lineno}"
            frame = frame.f_back
        return None

    def is_own(self, filename: str) -> bool:
        """Whether a file is the user's own code."""
        return self._place(filename) is not None

    def _place(self, filename: str) -> str | None:
        """A file as the user knows it, or None if it is a library's."""
        if filename not in self._places:
            self._places[filename] = self._named(filename)
        return self._places[filename]

    def _named(self, filename: str) -> str | None:
        if filename.startswith("<") or filename.startswith(_foreign()):
            return None
        path = Path(filename).resolve()
        return None if str(path).startswith(_foreign()) else self.named(path)

    def named(self, path: Path) -> str:
        """A path below the script's directory relative to it, any other whole."""
        whole = path.resolve()
        inside = whole.is_relative_to(self.home)
        return (whole.relative_to(self.home) if inside else whole).as_posix()

    def own_files(self) -> list[Path]:
        """Files of the user's own code that are loaded."""
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        return sorted({Path(file) for file in files if file and self._place(file) is not None})

    def failed(self, error: BaseException, trace: TracebackType | None) -> None:
        """Note that looking failed; a recording that cannot be written ends here."""
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = "" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}"
        line = "" if trace is None else f":{trace.tb_lineno}"
        if place + line in self._noticed:
            return
        self._noticed.add(place + line)
        try:
            text = f"could not observe: {type(error).__name__}: {error} ({place}{line})"
            self.emit(Notice(text=text))
        except Exception as unwritten:
            self.lost = f"the recording could not be written to its end: {unwritten}"
            self.stop()


class _Aside:
    """See `Recorder.aside`."""

    __slots__ = ("began", "outermost", "recorder")

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __enter__(self) -> None:
        thread = self.recorder._thread
        depth = getattr(thread, "depth", 0)
        thread.depth = depth + 1
        self.outermost = depth == 0
        self.began = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        recorder = self.recorder
        swallowed = isinstance(error, Exception)
        if isinstance(error, Exception):
            recorder.failed(error, trace)
        recorder._thread.depth -= 1
        if self.outermost:
            recorder.overhead += time.perf_counter() - self.began
        return swallowed


@cache
def _foreign() -> tuple[str, ...]:
    """Directories whose code is not the user's: Python, installed packages, Weft."""
    names = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    places = [PACKAGE, *(Path(sysconfig.get_path(name)) for name in names)]
    return tuple({f"{each}{os.sep}" for place in places for each in (place, place.resolve())})
