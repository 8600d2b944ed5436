"""Resumable states: `checkpoints/step-N/`, complete or not there, and checked when read.

What a checkpoint holds is its writer's business. `files.json` lists its files with their hashes,
so that a damaged one is found and the one before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from weft.core.errors import InputError
from weft.core.files import atomic_dir, read_json, remove_dir, sha256_file, write_json

KEEP = 2
"""Checkpoints that stay: the newest, and one to fall back on."""

_NAME = re.compile(r"step-(\d+)")
_FILES = "files.json"


@dataclass(frozen=True)
class Checkpoint:
    """A state after `step` optimiser steps."""

    step: int
    path: Path


def save(directory: Path, step: int, write: Callable[[Path], None]) -> Checkpoint:
    """Let `write` fill a directory, which becomes the checkpoint of `step`; drop old ones."""
    path = directory / f"step-{step}"
    with atomic_dir(path) as temporary:
        write(temporary)
        hashes = {name: sha256_file(temporary / name) for name in _files(temporary)}
        write_json(temporary / _FILES, hashes)
    for old in listed(directory)[:-KEEP]:
        remove_dir(old.path)
    return Checkpoint(step, path)


def listed(directory: Path) -> list[Checkpoint]:
    """All checkpoints, oldest first, sound or not."""
    if not directory.is_dir():
        return []
    found = [(entry, _NAME.fullmatch(entry.name)) for entry in directory.iterdir()]
    checkpoints = [Checkpoint(int(match[1]), entry) for entry, match in found if match]
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def damage(checkpoint: Checkpoint) -> str | None:
    """What is wrong with the files of a checkpoint, or None when they are as written."""
    try:
        hashes = read_json(checkpoint.path / _FILES)
    except InputError as error:
        return error.problem
    for name, digest in hashes.items():
        file = checkpoint.path / name
        if not file.is_file():
            return f"{file} is missing"
        if sha256_file(file) != digest:
            return f"{file} is not as it was written"
    return None


def drop_after(directory: Path, step: int) -> None:
    """Remove the checkpoints of later steps."""
    for checkpoint in listed(directory):
        if checkpoint.step > step:
            remove_dir(checkpoint.path)


def _files(directory: Path) -> list[str]:
    files = (entry for entry in directory.rglob("*") if entry.is_file())
    return sorted(file.relative_to(directory).as_posix() for file in files)
