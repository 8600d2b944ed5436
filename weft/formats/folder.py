"""The files of an adapter: which one holds its tensors, told by content.

A name is only believed where the content says nothing: a torn file, or one without factors.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from tokenize import TokenError

from safetensors import SafetensorError, safe_open

from weft.core.errors import InputError
from weft.formats.problems import shortened

CONFIG = "adapter_config.json"
CERTIFICATE = "certificate.json"
USUAL = {
    "peft": "adapter_model.safetensors",
    "mlx": "adapters.safetensors",
    "npz": "adapters.npz",
}
"""What each format calls the file of its tensors."""

_SUFFIXES = (".safetensors", ".npz")
_MLX = re.compile(r".+\.lora_[ab]")
_PEFT = re.compile(r".+\.lora_([AB]\b|embedding_[AB]|magnitude_vector).*")
_ZIP = b"PK\x03\x04"
ZIP_ERRORS = (
    OSError, EOFError, ValueError, KeyError, MemoryError, RuntimeError, SyntaxError, TokenError,
    struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What zipfile and NumPy raise for files that are torn, or of a kind that they do not read."""


def find_tensors(path: Path, kind: str, usual: str) -> Path | None:
    """The file at `path`, or in the directory `path`, whose tensors are of `kind`; None if none.

    `usual` is the name that the format gives its file: it comes first, and it is taken on trust
    where the content tells nothing. Several files of other names are no choice to make here.
    """
    if path.is_file():
        return path if _kind(path) == kind or _trusted(path, usual) else None
    if not path.is_dir():
        return None
    if _kind(path / usual) == kind or _trusted(path / usual, usual):
        return path / usual
    others = [entry for entry in _tensor_files(path) if _kind(entry) == kind]
    return others[0] if len(others) == 1 else None


def require_tensors(path: Path, kind: str, usual: str, what: str) -> Path:
    """Like `find_tensors`; `InputError` that says what was looked for and what is there."""
    if not path.exists():
        raise InputError(f"there is no directory {path}, and no file")
    found = find_tensors(path, kind, usual)
    if found is not None:
        return found
    if path.is_file():
        raise InputError(f"{path} is not {what}: {contents(path)}")
    raise InputError(f"{path} is not {what}: it has no {usual}; {contents(path)}")


def contents(path: Path) -> str:
    """What is at `path`, in words, for an error."""
    if path.is_file():
        return f"it is a file of {_words(_kind(path))}"
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return "the directory is empty"
    told = [
        f"{name} ({_words(_kind(path / name))})" if name.endswith(_SUFFIXES) else name
        for name in names
    ]
    return f"it holds {shortened(told, ', ')}"


def refuse_to_overwrite(directory: Path, own: Collection[str]) -> None:
    """An adapter directory is replaced whole: nothing but the files of one adapter may be in it."""
    if directory.is_file():
        raise InputError(f"{directory} is a file; an adapter is a directory")
    if directory.exists():
        others = {entry.name for entry in directory.iterdir()} - {*own, CERTIFICATE}
        if others:
            raise InputError(
                f"{directory} holds other files too: {shortened(sorted(others), ', ')}",
                hint="choose a new or an empty directory for the adapter",
            )


def _trusted(path: Path, usual: str) -> bool:
    return path.name == usual and path.is_file() and _kind(path) is None


def _tensor_files(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if entry.suffix in _SUFFIXES)


def _kind(path: Path) -> str | None:
    """What the names of the tensors tell: "peft", "mlx", "npz", or None where they do not."""
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP
        names = _zip_names(path) if is_zip else _safetensors_names(path)
    except (SafetensorError, *ZIP_ERRORS):
        return None
    if any(_MLX.fullmatch(name) for name in names):
        return "npz" if is_zip else "mlx"
    return "peft" if not is_zip and any(_PEFT.fullmatch(name) for name in names) else None


def _zip_names(path: Path) -> Iterable[str]:
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _safetensors_names(path: Path) -> Iterable[str]:
    with safe_open(path, framework="numpy") as file:
        return list(file.keys())


def _words(kind: str | None) -> str:
    return {
        "peft": "PEFT's factors",
        "mlx": "mlx-lm's factors",
        "npz": "factors of the legacy mlx-examples",
        None: "no factors that Weft knows",
    }[kind]
