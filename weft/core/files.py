"""Files that are either the old or the new whole: never half, whatever ends the process.

Whole files and directories are written beside their place, flushed to the disk and renamed into
it. Lines are appended with one write each, so at most the last line can be torn; the reader drops
that line. What the operating system refuses (a full disk, a missing permission) becomes a
`WeftError` that names the path.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from weft.core.errors import InputError, NumericError, WeftError

Record = dict[str, Any]
"""One line of a JSON Lines file."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Put `content` at `path`: after a kill at any moment the file is the old or the new one.

    Also after the machine stops, if it is `durable`, which can take some hundredths of a second.
    """
    data = content.encode() if isinstance(content, str) else content
    with _os_errors_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
        try:
            _write_new(temporary, data, durable=durable)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)


def check_place(path: Path, option: str) -> None:
    """Raise `InputError` where `write_atomic` could not put a file; `option` named the path."""
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        problem = "is a directory"
    elif path.exists() and not path.is_file():
        problem = "is a device or a pipe, and only a file can be replaced"
    elif not parent.is_dir():
        problem = f"cannot be written: {parent} is not a directory"
    elif not os.access(parent, os.W_OK):
        problem = f"cannot be written: no permission to write in {parent}"
    else:
        return
    raise InputError(f"{option} {path} {problem}", hint="give the name of a file")


def write_json(path: Path, value: Any, *, sort_keys: bool = True) -> None:
    """Write indented JSON; floats read back exactly, and NaN or infinity is refused by name."""
    write_atomic(path, _json(value, path, indent=2, sort_keys=sort_keys) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file; a missing or broken one is an `InputError` with file and line."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a UTF-8 text file") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"
        ) from None


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Fill the directory that this yields; it becomes `path`, synced, when the block succeeds.

    An existing `path` is replaced. Directories cannot be exchanged in one step everywhere, so a
    kill between the two renames leaves no `path`; whoever needs the old one then keeps two. When
    the block fails, nothing is left, not even the parents that were made for it.
    """
    with _os_errors_name(path):
        made = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
        temporary.mkdir()
        try:
            yield temporary
            for entry in sorted(temporary.rglob("*")):
                sync(entry)
            sync(temporary)
            remove_dir(path)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):  # somebody else has put something there
                for parent in made:
                    parent.rmdir()
            raise
        sync(path.parent)


def remove_dir(path: Path) -> None:
    """Remove a directory: it is gone from `path` at once, then its files are deleted."""
    if not path.exists():
        return
    aside = _beside(path)
    with _os_errors_name(path):
        os.replace(path, aside)
        shutil.rmtree(aside)


def free_directory(parent: Path, name: str) -> Path:
    """`parent/name`, or the first of `parent/name-2`, `-3`, ... that does not exist."""
    number = 1
    while (parent / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return parent / (name if number == 1 else f"{name}-{number}")


def remove_leftovers(directory: Path) -> None:
    """Delete what killed processes left in `directory` (not below). Needs the directory's lock."""
    for entry in directory.glob(".*.tmp"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a directory, durable."""
    if os.name != "posix" and path.is_dir():
        return  # Windows has no handle to sync a directory with
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_jsonl(path: Path, record: Record) -> None:
    """Append one line with one write, no fsync: a killed process loses nothing it appended.

    When the disk is full the file is cut back to whole lines before the error is raised.
    """
    append_line(path, _json(record, path).encode())


def append_line(path: Path, line: bytes) -> None:
    """The same of a line that is JSON already; what ends it is added."""
    line += b"\n"
    with _os_errors_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, line)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def read_jsonl(path: Path) -> list[Record]:
    """All whole lines; a torn last line is dropped, a broken line before it is an `InputError`.

    A file that does not exist yet has no lines.
    """
    return [record for record, _ in _lines(path)]


def truncate_jsonl(path: Path, keep: Callable[[Record], bool] = lambda record: True) -> None:
    """Rewrite the file with the lines that `keep` accepts; a torn last line always goes."""
    if not path.exists():
        return
    kept = b"".join(line for record, line in _lines(path) if keep(record))
    if len(kept) != path.stat().st_size:
        write_atomic(path, kept)


def _lines(path: Path) -> Iterator[tuple[Record, bytes]]:
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        last = number == len(lines)
        if last and not line.endswith(b"\n"):
            return
        try:
            record = json.loads(line)
        except ValueError as error:  # bad JSON or bad UTF-8
            if last:
                return
            raise InputError(
                f"{path}, line {number}: not valid JSON: {error}",
                hint="only a last line can be torn by a crash; this one was changed by something "
                "else",
            ) from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}: expected a JSON object")
        yield record, line


def _json(value: Any, path: Path, *, indent: int | None = None, sort_keys: bool = False) -> str:
    dumps = partial(json.dumps, indent=indent, sort_keys=sort_keys, allow_nan=False, default=_plain)
    try:
        text = dumps(value, ensure_ascii=False)
        # Half a surrogate pair has no UTF-8 form, but an escaped one.
        return text if _is_utf8(text) else dumps(value)
    except ValueError:
        where = next(_not_finite(value, ""), None)
        if where is None:
            raise
        raise NumericError(
            f"{where} is not a finite number, and was to be written to {path}"
        ) from None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _not_finite(value: Any, where: str) -> Iterator[str]:
    """Dotted names of the numbers that JSON cannot hold."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where or 'the value'} ({value})"


def _beside(path: Path) -> Path:
    """A fresh temporary name in the same directory, hence on the same file system."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def _write_new(path: Path, data: bytes, *, durable: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _write_all(descriptor, data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextmanager
def _os_errors_name(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        hint = None
        if error.errno in _FULL:
            hint = "make room on that disk and go on; what was written before is whole"
        elif error.errno in _DENIED:
            hint = "check the permissions of that directory, or choose another one"
        raise WeftError(f"cannot write {path}: {reason}", hint) from error
