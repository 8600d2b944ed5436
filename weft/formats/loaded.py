"""What reading an adapter from disk gives, whatever the format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weft.core.errors import InputError

if TYPE_CHECKING:
    from weft.model.adapter import Adapter

GIVEN = "given, not taken from the files"
"""`LoadedAdapter.scale_from` where the reader was told the scale."""


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter, and what its files say around it."""

    adapter: Adapter
    config: dict[str, Any]  # the format's own configuration, as it was read; {} where it has none
    base_ref: str | None  # the base model that the files name
    notes: tuple[str, ...]  # true and odd, but no reason to refuse the adapter
    format: str  # the name in `FORMATS`
    scale_from: str  # how the scales were found, in words


@dataclass(frozen=True)
class ScaleCandidate:
    """A multiplier of B @ A that the files may mean, and why."""

    scale: float
    reason: str


class UndecidedScale(InputError):
    """The files of an adapter do not say at which scale it was trained."""

    def __init__(self, problem: str, candidates: Sequence[ScaleCandidate], hint: str) -> None:
        lines = [f"  {c.scale:g}: {c.reason}" for c in candidates]
        super().__init__("\n".join([problem, *lines]), hint)
        self.candidates = tuple(candidates)
