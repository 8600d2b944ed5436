"""A reward of the user's own: a Python function, run in a process of its own.

What the function does wrong is a failed grade: it raises, returns no number, takes longer than
its time, or takes its process down. Then a fresh process goes on with the next completion.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from weft.core.errors import InputError
from weft.data.rewards import worker
from weft.data.rewards.grade import Grade

START_SECONDS = 120.0
"""What importing the user's file may take."""
CHUNK = 1 << 16


class WorkerLost(Exception):
    """Why the process has not answered: it is gone."""


class UserReward:
    """Grades by `function` of `file`: (row, completion) to a number.

    `InputError` where the file or the function cannot be used. `restarts` counts the processes
    that were lost.
    """

    def __init__(self, file: Path, function: str = "reward", timeout: float = 5.0) -> None:
        self.name = f"{file.name}:{function}"
        self.file, self.function, self.timeout = file, function, timeout
        self.restarts = 0
        self._digest = self._read()
        self._worker: _Worker | None = None
        self.ready()

    def ready(self) -> None:
        """Start the process, of the file as it was when grading began."""
        if self._read() != self._digest:
            raise InputError(
                f"`objective.file` {self.file} is not here what it is where the run began",
                hint="give every machine the same file at the same path",
            )
        try:
            self._worker = self._worker or self._start()
        except WorkerLost as lost:
            raise InputError(
                f"`objective.file` {self.file}, function `{self.function}`: {lost}",
                hint="it is a Python file with `def reward(row: dict, completion: str) -> float`; "
                "`objective.function` names another function",
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        """Processes do not travel: where this arrives, `ready` starts another."""
        return {**vars(self), "file": self.file.absolute(), "_worker": None}

    def _read(self) -> str:
        """The SHA-256 of the file."""
        try:
            return hashlib.sha256(self.file.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(
                f"`objective.file`: cannot read {self.file}: {error.strerror or error}"
            ) from None

    def __call__(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Grade]:
        """The grade of each completion, one after another."""
        return [self._grade(row, text) for row, text in zip(rows, texts, strict=True)]

    def record(self) -> dict[str, str]:
        """The function, and the SHA-256 of its file as it was when grading began."""
        return {
            "reward": self.function,
            "file": str(self.file),
            "sha256": self._digest,
            "timeout": str(self.timeout),
        }

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _grade(self, row: Mapping[str, Any], text: str) -> Grade:
        try:
            if self._worker is None:
                self._worker = self._start()
            answer = self._worker.ask({"row": row, "completion": text}, self.timeout)
        except (WorkerLost, InputError, OSError) as lost:
            self.restarts += 1
            self.close()
            return Grade.failed(str(lost))
        if "reward" in answer:
            return Grade(float(answer["reward"]))
        return Grade.failed(str(answer["failure"]))

    def _start(self) -> _Worker:
        if self._read() != self._digest:
            raise WorkerLost("its file has changed since grading began")
        return _Worker(self.file, self.function, self.timeout)


class _Worker:
    """A process that has loaded the function; `WorkerLost` where it does not come to that."""

    def __init__(self, file: Path, function: str, timeout: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, worker.__file__, str(file), function, str(timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # it ends with whatever it started, and not by Ctrl-C
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._into, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._into, False)
        try:
            said = self._hear(time.monotonic() + START_SECONDS, START_SECONDS)
            if "problem" in said:
                raise WorkerLost(said["problem"])
        except WorkerLost:
            self.kill()
            raise

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to a request, within `seconds`."""
        deadline = time.monotonic() + seconds
        rest = memoryview(json.dumps(request, default=str).encode() + b"\n")
        while rest:
            _, ready, _ = select.select([], [self._into], [], _left(deadline))
            if not ready:
                raise WorkerLost(f"took longer than {seconds:g} s")
            try:
                rest = rest[os.write(self._into, rest[:CHUNK]) :]
            except BrokenPipeError:
                raise WorkerLost(self._how_it_ended()) from None
        return self._hear(deadline, seconds)

    def kill(self) -> None:
        """End the process and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _hear(self, deadline: float, seconds: float) -> dict[str, Any]:
        """The next line that it says."""
        heard = b""
        while not heard.endswith(b"\n"):
            ready, _, _ = select.select([self._out], [], [], _left(deadline))
            if not ready:
                raise WorkerLost(f"took longer than {seconds:g} s")
            part = os.read(self._out, CHUNK)
            if not part:
                raise WorkerLost(self._how_it_ended())
            heard += part
        try:
            return dict(json.loads(heard))
        except ValueError:
            raise WorkerLost("its process answered with something else than a grade") from None

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return "its process closed its output"
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        return f"its process ended {how}"


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
