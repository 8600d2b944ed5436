"""The formats that adapters are stored in. A new format is one file here and one line below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from weft.core.errors import InputError
from weft.formats import mlx, npz, peft
from weft.formats.folder import contents
from weft.formats.loaded import LoadedAdapter
from weft.formats.problems import shortened
from weft.model.adapter import Site


@dataclass(frozen=True)
class Format:
    """How to recognise, read and write one format; `detect` takes a directory or a tensor file.

    read(path, sites=None, *, scale=None, base_config=None) -> LoadedAdapter
    write(adapter, directory, *, base_ref, dropout=0.0, sites=None, base_config=None)

    `sites` are all adaptable sites of the base and `base_config` is its configuration; `scale`
    goes before whatever the files say. `fixed_scale` is the scale that `write` writes for in a
    format whose files do not say it.
    """

    name: str
    detect: Callable[[Path], bool]
    read: Callable[..., LoadedAdapter]
    write: Callable[..., None]
    fixed_scale: float | None = None


FORMATS = {
    "mlx": Format("mlx", mlx.detect, mlx.read, mlx.write),
    "npz": Format("npz", npz.detect, npz.read, npz.write, npz.SCALE),
    "peft": Format("peft", peft.is_adapter, peft.read_adapter, peft.write_adapter),
}


def detect_format(path: Path) -> Format | None:
    """The format of the adapter at `path`, a directory or a tensor file; None where there is none.

    Raises `InputError` for a directory that holds adapters in several formats.
    """
    found = [candidate for candidate in FORMATS.values() if candidate.detect(path)]
    if len(found) > 1:
        raise InputError(
            f"{path} holds adapters in several formats: {', '.join(f.name for f in found)}:"
            f" {contents(path)}",
            hint="name the file of the one that is meant",
        )
    return found[0] if found else None


def nearby(directory: Path) -> str | None:
    """A hint at the adapters in or right below a directory that is none itself."""
    inside = sorted(directory.iterdir()) if directory.is_dir() else []
    found = [str(e) for e in inside if any(f.detect(e) for f in FORMATS.values())]
    if len(found) == 1:
        return f"did you mean {found[0]}?"
    return f"name one of them: {shortened(found, ', ')}" if found else None


def read_any(
    path: Path,
    sites: Mapping[str, Site] | None = None,
    *,
    scale: float | None = None,
    base_config: PretrainedConfig | None = None,
) -> LoadedAdapter:
    """Read an adapter in whichever format it is; `InputError` where it is in none."""
    if not path.exists():
        raise InputError(f"there is no adapter {path}: no such file or directory")
    found = detect_format(path)
    if found is None:
        raise InputError(
            f"{path} is no adapter: {contents(path)}",
            hint=nearby(path)
            or f"an adapter is a directory with {peft.TENSORS} (PEFT), {mlx.TENSORS} (mlx-lm) or"
            f" {npz.TENSORS} (mlx-examples), or one of these files",
        )
    return found.read(path, sites, scale=scale, base_config=base_config)
