"""The adapters that ship with Weft, by name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

ADAPTERS = ("weft/countdown-easy", "weft/conciseness")
"""Each lies in the folder of its name below `weft/assets/adapters`."""


def bundled_adapter(ref: str) -> Path | None:
    """The directory of the adapter with this name; None for any other reference."""
    if ref not in ADAPTERS:
        return None
    return Path(str(files("weft") / "assets" / "adapters" / ref.removeprefix("weft/")))
