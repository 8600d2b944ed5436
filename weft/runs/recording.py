"""A recording: a directory of events, one line each, and the arrays that they name.

recording.json            what was recorded, with which versions, and how it ended
events.jsonl              one event a line, in order; a torn last line counts for nothing
tensors/000017.safetensors  the arrays of event 17
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from weft.core.errors import InputError
from weft.core.files import (
    Record,
    append_line,
    read_json,
    read_jsonl,
    remove_leftovers,
    sync,
    truncate_jsonl,
    write_atomic,
    write_json,
)
from weft.runs.evidence import EVENT, Event, Notice, Part
from weft.runs.manifest import utc_now

SCHEMA_VERSION = 1
"""Raised when a reader of the old files could misread the new ones."""

EventT = TypeVar("EventT", bound=Part)


class About(Part):
    """What a recording is of."""

    schema_version: int = SCHEMA_VERSION
    source: Literal["script", "mlx", "weft"]
    name: str
    command: str = ""
    created: str = Field(default_factory=utc_now)
    status: Literal["recording", "finished", "failed", "interrupted"] = "recording"
    """`recording` in a directory that nobody writes means that the process was killed."""

    exit_code: int | None = None
    error: str | None = None
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the user's own code, and of the data that it read, by path."""

    versions: dict[str, str] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)
    seconds: float | None = None
    overhead_seconds: float | None = None


class RecordingWriter:
    """Writes a recording. Each event is on disk when `add` returns."""

    def __init__(
        self, root: Path, about: About, *, budget_mib: int = 256, durable: bool = True
    ) -> None:
        """Start one in a directory that is empty or not there.

        Arrays past `budget_mib` in all are left out of their events, and a notice says so. What is
        not `durable` survives the end of the process, but perhaps not that of the machine.
        """
        refuse_to_mix(root)
        self.root, self.about, self._durable = root, about, durable
        self._left = budget_mib * 2**20
        self._count = 0
        try:
            (root / "tensors").mkdir(parents=True)
            (root / "events.jsonl").touch()
            self._update()  # last: makes it a recording
        except OSError as error:
            raise InputError(
                f"{root} cannot be written: {error.strerror}", hint="name another directory"
            ) from None

    @classmethod
    def reopen(
        cls,
        root: Path,
        keep: Callable[[Record], bool] = lambda event: True,
        *,
        budget_mib: int = 256,
    ) -> Self:
        """Go on with a recording from before the first event that `keep` refuses."""
        writer = cls.__new__(cls)
        writer.root, writer.about, writer._durable = root, Recording(root).about, True
        for directory in (root, root / "tensors"):
            remove_leftovers(directory)
        refused = False

        def precedes(event: Record) -> bool:
            nonlocal refused
            refused = refused or not keep(event)
            return not refused

        truncate_jsonl(root / "events.jsonl", precedes)
        writer._count = len(read_jsonl(root / "events.jsonl"))
        used = 0
        for path in (root / "tensors").iterdir():
            if path.stem.isdecimal() and int(path.stem) < writer._count:
                used += path.stat().st_size
            else:
                path.unlink()
        writer._left = budget_mib * 2**20 - used
        return writer

    def sync(self) -> None:
        """Make the events that were added durable; their arrays are."""
        sync(self.root / "events.jsonl")

    def add(self, event: Event, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Append an event; its `Array` fields name `arrays`, and are numbered with the event."""
        if arrays:
            event = self._keep(event, arrays)
        append_line(self.root / "events.jsonl", event.model_dump_json().encode())
        self._count += 1

    def _keep(self, event: Event, arrays: Mapping[str, np.ndarray]) -> Event:
        size = sum(array.nbytes for array in arrays.values())
        number = f"{self._count:06d}"
        if size > self._left:
            self.add(
                Notice(text=f"no room for the arrays of a {event.kind} event ({size:,} bytes)")
            )
            return EVENT.validate_python(_renamed(event.model_dump(), set(arrays), None))
        self._left -= size
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        path = self.root / "tensors" / f"{number}.safetensors"
        write_atomic(path, save(whole), durable=self._durable)
        return EVENT.validate_python(_renamed(event.model_dump(), set(arrays), number))

    def finish(self, **facts: Any) -> None:
        """Write how it ended: fields of `About`."""
        self.about = self.about.model_copy(update=facts)
        self._update()

    def _update(self) -> None:
        write_json(self.root / "recording.json", self.about.model_dump(), sort_keys=False)


def _renamed(value: Any, names: set[str], number: str | None) -> Any:
    """`value` with each name of an array numbered; without a number, such fields are left out."""
    if isinstance(value, dict):
        kept = {
            key: item
            for key, item in value.items()
            if number is not None or not (isinstance(item, str) and item in names)
        }
        return {key: _renamed(item, names, number) for key, item in kept.items()}
    if isinstance(value, str) and value in names:
        return f"{number}/{value}"
    return value


class Recording:
    """The reader of a recording, finished or not."""

    def __init__(self, root: Path) -> None:
        """Refuse what is none."""
        self.root = root
        if not is_recording(root):
            raise InputError(f"{root} is not a recording: it holds no recording.json")

    @cached_property
    def about(self) -> About:
        """What it is of."""
        raw = read_json(self.root / "recording.json")
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise InputError(
                f"{self.root} has schema version {version}; this Weft reads {SCHEMA_VERSION}",
                hint="update Weft",
            )
        try:
            return About.model_validate(raw)
        except ValidationError as error:
            raise InputError(f"{self.root / 'recording.json'}: {_first(error)}") from None

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """All events in order."""
        path = self.root / "events.jsonl"
        found = []
        for number, record in enumerate(read_jsonl(path), start=1):
            try:
                found.append(EVENT.validate_python(record))
            except ValidationError as error:
                raise InputError(f"{path}, line {number}: {_first(error)}") from None
        return tuple(found)

    def array(self, name: str) -> np.ndarray:
        """An array by the name that an event has for it."""
        number, _, key = name.partition("/")
        path = self.root / "tensors" / f"{number}.safetensors"
        try:
            with safe_open(path, framework="numpy") as file:
                array: np.ndarray = file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot read `{key}`: {error}") from None
        return array


def refuse_to_mix(root: Path) -> None:
    """A recording goes into a directory that is empty or not there; `InputError` for any other."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} is there already", hint="give a new or an empty directory")


def is_recording(path: Path) -> bool:
    """Whether a directory holds a recording."""
    return (path / "recording.json").is_file()


def _first(error: ValidationError) -> str:
    issue = error.errors()[0]
    return f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}"
