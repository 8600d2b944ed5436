"""What reading an adapter from disk gives, whatever the format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weft.model.adapter import Adapter


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter, and what its files say around it."""

    adapter: Adapter
    config: dict[str, Any]  # the format's own configuration, as it was read
    base_ref: str | None  # the base model that the files name
    notes: tuple[str, ...]  # true and odd, but no reason to refuse the adapter
