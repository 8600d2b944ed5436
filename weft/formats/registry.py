"""The formats that adapters are stored in. A new format is one file here and one line below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from weft.formats import peft
from weft.formats.loaded import LoadedAdapter


@dataclass(frozen=True)
class Format:
    """How to recognise, read and write one format."""

    name: str
    detect: Callable[[Path], bool]
    read: Callable[..., LoadedAdapter]
    write: Callable[..., None]


FORMATS = {
    "peft": Format("peft", peft.is_adapter, peft.read_adapter, peft.write_adapter),
}
