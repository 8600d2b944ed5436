"""A recording: a directory of events, one line each, and the arrays that they name.

recording.json            what was recorded, with which versions, and how it ended
events.jsonl              one event a line, in order
tensors/000017.safetensors  the arrays of event 17, counted from 0

A recording that ended knows how many events it has and the hash of them and their arrays: one that
was damaged is refused. Of one that was cut off, whole lines count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from weft.runs.evidence import EVENT, REAL, WHOLE, Event, Named, Notice, Part, arrays_of
from weft.runs.manifest import utc_now

SCHEMA_VERSION = 1
"""Raised when a reader of the old files could misread the new ones."""

DAMAGED = (
    "it was damaged after it was recorded: copy it again from where it is whole, or record again"
)

NUMBERS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"), WHOLE),
    **dict.fromkeys(("F16", "F32", "F64"), REAL),
}
"""What the types of safetensors hold that NumPy has."""

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
    events: int | None = None
    """How many there are, and the SHA-256 of them and their arrays; None while it is written."""

    digest: str | None = None


class RecordingWriter:
    """Writes a recording. Each event is on disk when `add` returns."""

    def __init__(
        self, root: Path, about: About, *, budget_mib: int = 256, durable: bool = True
    ) -> None:
        """Start one in a directory that is empty or not there.

        Left out of events, and said so in a notice, are arrays past `budget_mib` in all, and those
        that are not what the event's class promises. What is not `durable` survives the end of the
        process, but perhaps not that of the machine.
        """
        refuse_to_mix(root)
        self.root, self.about, self._durable = root, about, durable
        self._left = budget_mib * 2**20
        self._count, self._hash = 0, hashlib.sha256()
        self._noticed: set[str] = set()
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
        goes_on = {"status": "recording", "events": None, "digest": None}
        writer.root, writer._durable = root, True
        writer.about = Recording(root).about.model_copy(update=goes_on)
        writer._update()
        for directory in (root, root / "tensors"):
            remove_leftovers(directory)
        refused = False

        def precedes(event: Record) -> bool:
            nonlocal refused
            refused = refused or not keep(event)
            return not refused

        truncate_jsonl(root / "events.jsonl", precedes)
        lines = _lines(root)
        writer._count, writer._hash = len(lines), _hash(root, lines)
        writer._noticed = set()
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
        data = b""
        if arrays:
            event, data = self._keep(event, arrays)
        line = event.model_dump_json().encode()
        append_line(self.root / "events.jsonl", line)
        self._hash.update(data)
        self._hash.update(line)
        self._count += 1

    def _keep(self, event: Event, arrays: Mapping[str, np.ndarray]) -> tuple[Event, bytes]:
        """The event with its arrays numbered, and their bytes, which are on disk."""
        odd = {
            each.name: f"the {each.field} of a {event.kind} event {misfit}: left out"
            for each in arrays_of(event)
            if each.name in arrays and (misfit := _misfit(each, arrays[each.name])) is not None
        }
        size = sum(array.nbytes for name, array in arrays.items() if name not in odd)
        if size > self._left:
            odd = dict.fromkeys(
                arrays, f"no room for the arrays of a {event.kind} event ({size:,} bytes)"
            )
        for text in dict.fromkeys(odd.values()):
            self.notice(text)
        kept = {name: array for name, array in arrays.items() if name not in odd}
        raw = _renamed(event.model_dump(), set(odd), None)
        if not kept:
            return EVENT.validate_python(raw), b""
        self._left -= size
        number = f"{self._count:06d}"
        data = save({name: np.ascontiguousarray(array) for name, array in kept.items()})
        write_atomic(_tensors(self.root, number), data, durable=self._durable)
        return EVENT.validate_python(_renamed(raw, set(kept), number)), data

    def notice(self, text: str) -> None:
        """Say once what is not in it."""
        if text not in self._noticed:
            self._noticed.add(text)
            self.add(Notice(text=text))

    def finish(self, **facts: Any) -> None:
        """Write how it ended: fields of `About`."""
        sealed = {"events": self._count, "digest": self._hash.hexdigest()}
        self.about = self.about.model_copy(update=facts | sealed)
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
        with _damage_told():
            raw = read_json(self.root / "recording.json")
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            newer = isinstance(version, int) and version > SCHEMA_VERSION
            raise InputError(
                f"{self.root} has schema version {version}; this Weft reads {SCHEMA_VERSION}",
                hint="update Weft" if newer else DAMAGED,
            )
        try:
            return About.model_validate(raw)
        except ValidationError as error:
            raise InputError(
                f"{self.root / 'recording.json'}: {_first(error)}", hint=DAMAGED
            ) from None

    @property
    def whole(self) -> bool:
        """Whether it was ended, however the script did; else its process was killed, or goes on."""
        return self.about.status != "recording"

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """All events in order, with arrays as they promise them; `InputError` for what is not so.

        Of a recording that was cut off, those up to the last whole line.
        """
        path = self.root / "events.jsonl"
        if not path.is_file():
            raise InputError(f"{self.root} has no events.jsonl", hint=DAMAGED)
        found = []
        with _damage_told():
            records = read_jsonl(path)
        for number, record in enumerate(records, start=1):
            try:
                found.append(EVENT.validate_python(record))
            except ValidationError as error:
                raise InputError(f"{path}, line {number}: {_first(error)}", hint=DAMAGED) from None
        expected = self.about.events
        if expected is not None and expected != len(found):
            told = f"{path} has {len(found):,} whole events, and {expected:,} were written"
            raise InputError(told, hint=DAMAGED)
        for number, event in enumerate(found):
            self._check_arrays(number, event)
        if self.about.digest not in (None, _hash(self.root, _lines(self.root)).hexdigest()):
            told = f"{self.root} is not what was written: its events or arrays have another hash"
            raise InputError(told, hint=DAMAGED)
        return tuple(found)

    def lacks(self, ref: str) -> tuple[str, ...]:
        """What is not known of it, in words; `ref` is what the user calls it."""
        if not self.whole:
            count = len(self.events)
            torn = " and a half-written one" if len(_lines(self.root)) > count else ""
            return (
                f"{ref} was cut off while it was recorded, after {count:,} events{torn}: what came "
                "after is not in it",
            )
        if self.about.digest is None:
            return (f"{ref} does not say what was written into it: damage would not be seen",)
        return ()

    def array(self, name: str) -> np.ndarray:
        """An array by the name that an event has for it."""
        number, _, key = name.partition("/")
        path = _tensors(self.root, number)
        try:
            with safe_open(path, framework="numpy") as file:
                array: np.ndarray = file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot read `{key}`: {error}", hint=DAMAGED) from None
        return array

    def _check_arrays(self, number: int, event: Event) -> None:
        """Whether an event's arrays are there and are what its class says. Reads no numbers."""
        named = tuple(arrays_of(event))
        if not named:
            return
        own = f"{number:06d}"
        path = _tensors(self.root, own)
        try:
            with safe_open(path, framework="numpy") as file:
                for each in named:
                    stem, _, key = each.name.partition("/")
                    what = f"the {each.field} of line {number + 1} of events.jsonl, a {event.kind},"
                    if stem != own:
                        told = f"{self.root}: {what} is {each.name}, an array of another event"
                        raise InputError(told, hint=DAMAGED)
                    part = file.get_slice(key)
                    shape, kind = tuple(part.get_shape()), part.get_dtype()
                    misfit = each.form.misfit(shape, NUMBERS.get(kind), each.lengths)
                    if misfit is not None:
                        raise InputError(f"{path}: {what} {misfit}", hint=DAMAGED)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} cannot be read: {error}", hint=DAMAGED) from None


@contextmanager
def _damage_told() -> Iterator[None]:
    """What cannot be read has a hint."""
    try:
        yield
    except InputError as error:
        raise InputError(error.problem, hint=DAMAGED) from None


def _misfit(named: Named, array: np.ndarray) -> str | None:
    kinds = {"b": WHOLE, "i": WHOLE, "u": WHOLE, "f": REAL}
    return named.form.misfit(array.shape, kinds.get(array.dtype.kind), named.lengths)


def _tensors(root: Path, number: str) -> Path:
    return root / "tensors" / f"{number}.safetensors"


def _lines(root: Path) -> list[bytes]:
    """The lines of events, also a torn last one."""
    return (root / "events.jsonl").read_bytes().splitlines()


def _hash(root: Path, lines: Sequence[bytes]) -> hashlib._Hash:
    """Of the lines, each after the arrays that it names."""
    made = hashlib.sha256()
    for number, line in enumerate(lines):
        path = _tensors(root, f"{number:06d}")
        if b'"%06d/' % number in line and path.is_file():
            made.update(path.read_bytes())
        made.update(line)
    return made


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
