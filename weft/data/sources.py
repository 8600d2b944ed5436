"""Which file or folder holds the rows of which split."""

from __future__ import annotations

from pathlib import Path

from weft.core.errors import InputError
from weft.data.config import DataConfig
from weft.data.readers import READERS, is_saved_dataset
from weft.data.tasks import TASKS

SPLITS = {
    "train": ("train",),
    "valid": ("valid", "validation", "dev"),
    "test": ("test",),
}
"""The splits, and the names that their files may have."""


def find_sources(config: DataConfig) -> dict[str, Path]:
    """The path of each split that has one. A file is training rows; a folder may hold all."""
    if config.task is not None:
        directory = TASKS[config.task].directory
        assert directory is not None, config.task
        return _in_folder(directory)
    assert config.path is not None  # the configuration has one of both
    sources = _in_folder(config.path) if config.path.is_dir() else {"train": config.path}
    for split, path in (("valid", config.valid_path), ("test", config.test_path)):
        if path is None:
            continue
        if split in sources:
            raise InputError(
                f"`data.{split}_path` is {path}, and `data.path` already holds {sources[split]}",
                hint="leave one of them out",
            )
        sources[split] = path
    for split, path in sources.items():
        if not path.exists():
            key = "data.path" if split == "train" else f"data.{split}_path"
            raise InputError(f"`{key}`: there is no file or folder {path}")
    return sources


def _in_folder(folder: Path) -> dict[str, Path]:
    if is_saved_dataset(folder):
        return {"train": folder}
    sources = {}
    for split, names in SPLITS.items():
        found = [path for name in names for path in _candidates(folder, name)]
        if len(found) > 1:
            raise InputError(
                f"{folder} has several {split} files: {', '.join(p.name for p in found)}",
                hint="keep one of them, or give `data.path` and `data.valid_path` as files",
            )
        if found:
            sources[split] = found[0]
    if not sources:
        present = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else ""
        raise InputError(
            f"{folder} holds no train, valid or test rows (found: {present or 'nothing'})",
            hint=f"expected train and perhaps valid and test, as {', '.join(READERS)} or saved "
            "dataset folders",
        )
    return sources


def _candidates(folder: Path, name: str) -> list[Path]:
    files = [folder / f"{name}{suffix}" for suffix in READERS]
    return [p for p in files if p.is_file()] + [p for p in [folder / name] if is_saved_dataset(p)]
