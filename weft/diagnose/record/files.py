"""Data that a script reads: which files, their digests, and their records, so that slots are found.

What counts as data is what the script itself opens, or a library that reads data for it. The hook
through which Python tells of opened files cannot be taken away again, so there is one for the
process, and it does nothing while nobody listens.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.core.files import sha256_file
from weft.data.readers import read_rows
from weft.data.slots import Slots
from weft.diagnose.record.patching import Undo, replace, together, when_imported
from weft.runs.evidence import Encoded, Slot

if TYPE_CHECKING:
    from weft.diagnose.record.recorder import Recorder

READ_BY = {"datasets", "pandas", "polars", "pyarrow"}
"""Libraries that open data for a script."""

BESIDE = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}
"""What `datasets` writes beside its data."""

LARGEST = 64 * 2**20
"""Bytes of a file, and characters of all records, whose values are remembered."""

TEXTS = 20_000
"""Texts in which slots are looked for."""


class DataRead:
    """The data that a script has read so far."""

    def __init__(self, home: Path, digests: dict[str, str]) -> None:
        """Paths below `home`, the directory of the script, are named from there.

        The SHA-256 of each file goes into `digests`.
        """
        self.home = home
        self.digests = digests
        self.slots = Slots()
        self.too_large: list[str] = []
        """Files whose records are not remembered."""
        self.decode: Callable[[list[int]], str] | None = None
        """That of the tokenizer that was used last."""
        self._seen: dict[Path, tuple[int, int]] = {}
        self._texts = 0
        self._rows: dict[tuple[int, ...], str] = {}
        self._lengths: set[int] = set()

    def read(self, path: Path) -> None:
        """Take in a file that was opened, if it has changed since the last time."""
        path = path.resolve()
        stat = path.stat()
        state = (stat.st_mtime_ns, stat.st_size)
        if self._seen.get(path) == state:
            return
        self._seen[path] = state
        inside = path.is_relative_to(self.home)
        name = (path.relative_to(self.home) if inside else path).as_posix()
        self.digests[name] = sha256_file(path)
        if path.suffix not in RECORDS:
            return
        if stat.st_size > LARGEST:
            self.too_large.append(self.name(path))
            return
        name = self.name(path)
        self.slots.add((f"{name}:{key}", record) for key, record in RECORDS[path.suffix](path))

    def name(self, path: Path) -> str:
        """A path below the script's or the working directory, else its last two parts."""
        for root in (self.home, Path.cwd()):
            if path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return "/".join(path.parts[-2:])

    def find(self, text: str) -> tuple[Slot, ...]:
        """The slots of a text."""
        self._texts += 1
        return self.slots.find(text) if len(self.slots) and self._texts <= TEXTS else ()

    def texts(self, rows: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """Rows of ids as texts; empty where no tokenizer was used."""
        return () if self.decode is None else tuple(self.decode(list(row)) for row in rows)

    def encoded(self, event: Encoded) -> None:
        """Remember the record that most of a text came from, by its ids."""
        record = main_record(event.slots)
        if record and event.ids:
            self._rows[event.ids] = record
            self._lengths.add(len(event.ids))

    def record_of(self, ids: Sequence[int]) -> str:
        """The record behind a row of ids, which may go on after the text; empty: not known."""
        row = tuple(ids)
        for length in sorted(self._lengths, reverse=True):
            if length <= len(row) and row[:length] in self._rows:
                return self._rows[row[:length]]
        if self.decode is None or not len(self.slots):
            return ""
        record = main_record(self.find(self.decode(list(row))))
        self._rows[row] = record
        self._lengths.add(len(row))
        return record


def main_record(slots: Sequence[Slot]) -> str:
    """The record that explains most of a text; empty where there are no slots."""
    explained: dict[str, int] = {}
    for slot in slots:
        explained[slot.record] = explained.get(slot.record, 0) + slot.stop - slot.start
    return max(explained, key=explained.__getitem__) if explained else ""


def install(recorder: Recorder) -> Undo:
    """Look at files that the script opens, at datasets that it loads, and at texts it encodes."""
    from weft.diagnose.record.recorder import Ending  # which has a DataRead, from here

    data = recorder.data

    def opened(path: Any, mode: str | None, flags: int) -> None:
        if not recorder.watching:
            return
        with recorder.aside():
            found = _data_file(path, mode, flags)
            own = found is not None and recorder.is_own(str(found.absolute()))
            if found is not None and own and _reads_data(sys._getframe(2), recorder.is_own):
                data.read(found)

    def loads(original: Callable[..., Any]) -> Callable[..., Any]:
        def load_dataset(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            if recorder.watching:
                with recorder.aside():
                    _loaded(data, made, args, kwargs)
            return made

        return load_dataset

    def ended(_: Any) -> None:
        for name in data.too_large:
            recorder.notice(f"{name} is too large for its records to be remembered")

    _LISTENERS.append(opened)
    _hook()
    recorder.slots = data.find
    recorder.listen(Encoded, data.encoded)
    recorder.listen(Ending, ended)
    undos: list[Undo] = [lambda: _LISTENERS.remove(opened)]
    undos.append(
        when_imported(
            "datasets", lambda module: undos.append(replace(module, "load_dataset", loads))
        )
    )
    return together(undos)


_LISTENERS: list[Callable[[Any, str | None, int], None]] = []
_HOOKED: list[bool] = []


def _hook() -> None:
    if not _HOOKED:
        _HOOKED.append(True)
        sys.addaudithook(_audit)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and _LISTENERS:
        for listener in tuple(_LISTENERS):
            listener(*args)


def _data_file(path: Any, mode: str | None, flags: int) -> Path | None:
    """The path, if a file of data is opened to be read."""
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    writes = flags & (os.O_WRONLY | os.O_RDWR) if mode is None else set(mode) & set("wax+")
    if writes:
        return None
    found = Path(os.fsdecode(path))
    if found.suffix not in SUFFIXES or found.name in BESIDE or not found.is_file():
        return None
    return found


def _reads_data(frame: Any, is_own: Callable[[str], bool]) -> bool:
    """Whether it is the script that opens, or a library that reads data: by the nearest frame."""
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if is_own(frame.f_code.co_filename):
            return True
        if package in READ_BY:
            return True
        if package not in sys.stdlib_module_names and package not in ("fsspec", "weft"):
            return False
        frame = frame.f_back
    return False


def _loaded(data: DataRead, made: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Files and rows of a loaded dataset, which may have come out of a cache unopened."""
    path = str(args[0] if args else kwargs.get("path", ""))
    given = kwargs.get("data_files")
    files = [Path(file) for file in _flat(given) if Path(file).is_file()]
    for file in files:
        data.read(file)
    if files:
        return
    splits = made if isinstance(made, Mapping) else {str(getattr(made, "split", "")): made}
    for split, rows in splits.items():
        if hasattr(rows, "__len__") and rows.dataset_size is not None:
            if rows.dataset_size > LARGEST:
                data.too_large.append(f"{path}/{split}")
                continue
            data.slots.add((f"{path}/{split}:{i}", row) for i, row in enumerate(rows, start=1))


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, str | os.PathLike):
        yield os.fspath(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _flat(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)


Records = Iterator[tuple[str, Any]]
"""Names within a file, and records. A file that is not what its name says has none."""


def _jsonl(path: Path) -> Records:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield str(number), json.loads(line)
            except ValueError:
                continue


def _json(path: Path) -> Records:
    try:
        value = json.loads(path.read_text("utf-8-sig", errors="replace"))
    except ValueError:
        return
    yield from _elements(value)


def _elements(value: Any, prefix: str = "") -> Records:
    """A list's elements by number, a table of tables by key, anything else as one record."""
    if isinstance(value, list):
        yield from ((f"{prefix}{i}", item) for i, item in enumerate(value, start=1))
    elif (
        isinstance(value, dict)
        and value
        and all(isinstance(item, list | dict) for item in value.values())
    ):
        for key, item in value.items():
            if isinstance(item, list):
                yield from _elements(item, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", item
    else:
        yield f"{prefix}1", value


def _table(separator: str) -> Callable[[Path], Records]:
    def read(path: Path) -> Records:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.DictReader(file, delimiter=separator)
            yield from ((str(i), row) for i, row in enumerate(rows, start=1))

    return read


def _text(path: Path) -> Records:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        yield from ((str(i), line) for i, line in enumerate(file, start=1))


def _parquet(path: Path) -> Records:
    yield from ((str(row.line), row.value) for row in read_rows(path).rows)


RECORDS: dict[str, Callable[[Path], Records]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".txt": _text,
    ".parquet": _parquet,
}
SUFFIXES = {*RECORDS, ".yaml", ".yml", ".toml", ".npz", ".npy"}
"""Of files whose digest is kept."""
