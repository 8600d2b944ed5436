"""The one writer of a run directory.

The manifest is written first, `DONE.json` last, and a lock is held in between, so a directory is
at every moment a complete run, a run that can be reopened, or not yet a run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout

from weft.core.errors import InputError, WeftError
from weft.core.files import (
    Record,
    append_jsonl,
    read_json,
    read_jsonl,
    remove_dir,
    remove_leftovers,
    sync,
    truncate_jsonl,
    write_atomic,
    write_json,
)
from weft.core.table import ScoreTable
from weft.runs import checkpoints
from weft.runs.evidence import Event
from weft.runs.layout import ExperimentLayout, RunLayout
from weft.runs.manifest import SCHEMA_VERSION, Manifest, Status, utc_now
from weft.runs.recording import About, RecordingWriter, is_recording
from weft.runs.timing import TIMES, Breakdown, Stopwatch


class RunWriter:
    """Writes one run; a context manager that holds the run's lock.

    Leaving the block with an exception records the run as failed, or as interrupted for Ctrl-C.
    What its stopwatch has seen is written with every checkpoint and however the run ends.
    """

    def __init__(
        self, layout: RunLayout, manifest: Manifest, lock: FileLock, clock: Stopwatch | None
    ) -> None:
        """Use `create` or `reopen`."""
        self.layout = layout
        self.manifest = manifest
        self._lock = lock
        self._clock = clock or Stopwatch()
        self._since = 0
        self._earlier: Breakdown | None = None  # what processes before this one took
        self._forgotten: dict[tuple[int, str | None], Record] = {}  # evidence of steps to retake
        self._retaken: list[bool] = []  # whether each is as before
        self._recording: RecordingWriter | None = None  # begun with its first event

    @classmethod
    def create(
        cls,
        root: Path,
        manifest: Manifest,
        config_text: str = "",
        code_diff: str = "",
        *,
        clock: Stopwatch | None = None,
    ) -> Self:
        """Start a run in a directory that does not exist or is empty."""
        layout = RunLayout(root)
        refuse_occupied(root)
        lock = take_lock(layout)
        try:
            refuse_occupied(root)  # somebody may have been faster
            remove_leftovers(root)
            manifest.save(layout.manifest)
            write_atomic(layout.config, config_text)
            write_atomic(layout.code_diff, code_diff)
        except BaseException:
            lock.release()
            raise
        return cls(layout, manifest, lock, clock)

    @classmethod
    def reopen(cls, root: Path, *, clock: Stopwatch | None = None) -> Self:
        """Go on with a run that did not finish; follow with `sound_checkpoints`, `resume_at`."""
        layout = RunLayout(root)
        if not layout.manifest.exists():
            raise InputError(
                f"{root} is not a run directory: it has no {layout.manifest.name}",
                hint="a run that was stopped before it began is started again, without --resume",
            )
        lock = take_lock(layout)
        try:
            if layout.done.exists():
                raise InputError(
                    f"the run {root} is finished", hint="start a new run in another directory"
                )
            for directory in (root, layout.checkpoints, layout.tables, layout.results):
                remove_leftovers(directory)
            for lines in layout.lines:
                truncate_jsonl(lines)
            writer = cls(layout, Manifest.load(layout.manifest), lock, clock)
            if (times := layout.result(TIMES)).exists():
                writer._earlier = Breakdown.of(read_json(times), times)
            writer._set(status="running")
        except BaseException:
            lock.release()
            raise
        return writer

    def step(self, record: Record) -> None:
        """Append one step; `record["step"]` counts from 1."""
        assert isinstance(record["step"], int)
        append_jsonl(self.layout.steps, record)

    def evidence(self, record: Record) -> None:
        """Append what replays a step.

        Of steps that are taken again it is recorded whether they are what they were.
        """
        append_jsonl(self.layout.evidence, record)
        name = (record["step"], record.get("member"))
        before = self._forgotten.pop(name, None)
        if before is None:
            return
        self._retaken.append(before == record)
        if before != record:
            odd = [key for key in record if before.get(key) != record[key]]
            self.notice(
                f"step {name[0]} was taken again after an interruption, and is not what it was: "
                f"its {' and '.join(odd)} differ"
            )
        if not self._forgotten:
            lines, same = len(self._retaken), sum(self._retaken)
            self.event("taken again", step=name[0], lines=lines, same=same)

    def record(self, event: Event, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Append to the run's recording what stands nowhere else, with the arrays that it names."""
        if self._recording is None:
            about = About(source="weft", name=self.manifest.name)
            self._recording = RecordingWriter(self.layout.recording, about)
        self._recording.add(event, arrays)

    @property
    def records(self) -> bool:
        """Whether the run has begun its recording."""
        return self._recording is not None

    def sample(self, record: Record) -> None:
        """Append one generated text."""
        append_jsonl(self.layout.samples, record)

    def event(self, kind: str, **facts: Any) -> None:
        """Record that something happened, in the manifest."""
        event = {"kind": kind, "time": utc_now(), **facts}
        self._set(events=(*self.manifest.events, event))

    def notice(self, text: str) -> None:
        """Record something that the user should know; the same text is recorded once."""
        if text not in self.manifest.notices:
            self._set(notices=(*self.manifest.notices, text))

    def fingerprint(self, stage: str, digest: str) -> None:
        """Record the hash of a stage that is known only now."""
        self._set(fingerprints={**self.manifest.fingerprints, stage: digest})

    def table(self, name: str, table: ScoreTable) -> None:
        """Write a score table, in place of one of the same name."""
        table.save(self.layout.table(name))

    def start(self, write: Callable[[Path], None]) -> None:
        """Let `write` keep the adapter that the run was given, unless that is there."""
        if not self.layout.start.exists():
            write(self.layout.start)

    def result(self, name: str, result: Record) -> None:
        """Write a result file, in place of one of the same name."""
        write_json(self.layout.result(name), result)

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Let `write` fill a directory; it becomes the checkpoint of `step`, whole or not at all.

        It is the last call of a step: who resumes here does not write that step again. The newest
        two are kept. Lines reach the disk before the checkpoint that relies on them. Write with
        `weft.core.files`, or let `OSError` pass, so that a full disk is reported as one.
        """
        for lines in self.layout.lines:
            if lines.exists():
                sync(lines)
        if self._recording is not None:
            self._recording.sync()
        checkpoints.save(self.layout.checkpoints, step, write)
        self._write_times()

    def sound_checkpoints(self) -> Iterator[tuple[int, Path]]:
        """Step and directory of each, newest first; a damaged one is skipped, with a notice."""
        for checkpoint in reversed(checkpoints.listed(self.layout.checkpoints)):
            problem = checkpoints.damage(checkpoint)
            if problem is None:
                yield checkpoint.step, checkpoint.path
            else:
                self.notice(f"skipped the checkpoint of step {checkpoint.step}: {problem}")

    def resume_at(self, step: int) -> None:
        """Forget what was recorded after `step`: those steps are taken again. 0 forgets all."""
        self._since = step
        self._forgotten = {
            (line["step"], line.get("member")): line
            for line in read_jsonl(self.layout.evidence)
            if line["step"] > step
        }
        for lines in self.layout.lines:
            truncate_jsonl(lines, lambda record: record.get("step", 0) <= step)
        self._reopen_recording(step)
        checkpoints.drop_after(self.layout.checkpoints, step)
        self._forget_events(step)

    def finish(self, status: Status) -> None:
        """Record how the run ended; `finished` makes it complete and is the last call."""
        if status != "finished":  # first: whoever ends it may not wait for the rest
            self._set(status=status)
        self._write_times()
        if self._recording is not None:
            self._recording.finish(status=status)
        if status == "finished":
            self._set(status=status)
            done = {"schema_version": SCHEMA_VERSION, "finished": utc_now()}
            write_json(self.layout.done, done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self.manifest.status == "running":
                with suppress(WeftError):  # the disk may be full: the first error matters
                    if isinstance(error, Exception):
                        self.event("failed", error=f"{type(error).__name__}: {error}")
                    self.finish("failed" if isinstance(error, Exception) else "interrupted")
        finally:
            self._lock.release()

    def _forget_events(self, step: int) -> None:
        events = (event for event in self.manifest.events if event.get("step", 0) <= step)
        self._set(events=tuple(events))
        self.event("resumed", step=step)

    def _reopen_recording(self, step: int) -> None:
        """With the events up to a step; at its beginning a run records anew."""
        place = self.layout.recording
        if step and is_recording(place):
            self._recording = RecordingWriter.reopen(place, lambda event: happened(event) <= step)
        else:
            remove_dir(place)

    def _write_times(self) -> None:
        times = self._clock.breakdown(self._since)
        times = times if self._earlier is None else times.after(self._earlier)
        self.result(TIMES, times.record())

    def _set(self, **fields: Any) -> None:
        """Write the manifest with these fields; on failure the old one stays, here and there."""
        manifest = self.manifest.model_copy(update=fields)
        manifest.save(self.layout.manifest)
        self.manifest = manifest


def happened(event: Record) -> float:
    """The step after which an event of a run's recording came; passes that train are numbered."""
    if event["kind"] == "pass":
        return event["index"] + 1 if event["phase"] == "train" else math.inf
    return event.get("step") or 0


def refuse_occupied(root: Path, option: str = "--run-dir") -> None:
    """Hidden files do not count: a lock and temporaries are all that an early kill leaves."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file", hint=f"choose another {option}")
    if root.exists() and any(not entry.name.startswith(".") for entry in root.iterdir()):
        raise InputError(
            f"the directory {root} is not empty",
            hint=f"go on with what is there with `--resume`, or choose another `{option}`",
        )


def take_lock(
    layout: RunLayout | ExperimentLayout, what: str = "run", option: str = "--run-dir"
) -> FileLock:
    """Make the directory and hold it, so that one process writes there."""
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(layout.lock, thread_local=False)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another process{_holder(layout.lock)} is writing the {what} {layout.root}",
            hint=f"wait until it ends, or choose another `{option}`",
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot create the {what} directory {layout.root}: {error.strerror}",
            hint=f"choose another `{option}`",
        ) from None
    with suppress(OSError):  # only for the message above
        layout.lock.write_text(f"{os.getpid()}\n")
    return lock


def _holder(lock: Path) -> str:
    with suppress(OSError):
        if pid := lock.read_text().strip():
            return f" (pid {pid})"
    return ""
