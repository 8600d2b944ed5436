"""A few points of every tensor: whether a base has moved, without reading all of it.

Shapes: N tensors, S points of them all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

POINTS = 64
"""Of each tensor, evenly spread. What changes a base, a merge or a step, changes most of them."""


@dataclass(frozen=True, eq=False)
class Points:
    """Points of named tensors."""

    names: tuple[str, ...]  # N
    stops: tuple[int, ...]  # N, of each tensor in the values
    values: np.ndarray  # [S] float32

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Points:
        """Take them, with one copy from the device."""
        pieces = [_points(tensor.detach()) for tensor in tensors.values()]
        values = torch.cat(pieces).cpu().numpy() if pieces else np.zeros(0, np.float32)
        stops = np.cumsum([len(piece) for piece in pieces]).tolist()
        return cls(tuple(tensors), tuple(stops), values)

    @property
    def digest(self) -> str:
        """Of names and values."""
        made = hashlib.sha256("\n".join(self.names).encode())
        made.update(self.values.tobytes())
        return made.hexdigest()[:16]

    def changed(self, before: Points) -> list[str]:
        """Names of tensors that were there before and had other values."""
        if self.names == before.names and self.values.tobytes() == before.values.tobytes():
            return []
        old = dict(before.parts())
        return [name for name, part in self.parts() if name in old and old[name] != part]

    def parts(self) -> list[tuple[str, bytes]]:
        """Names with the bytes of their points."""
        starts = (0, *self.stops[:-1])
        spans = zip(self.names, starts, self.stops, strict=True)
        return [(name, self.values[start:stop].tobytes()) for name, start, stop in spans]


def _points(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor[:1].reshape(-1)
    return flat[:: max(1, flat.numel() // POINTS)][:POINTS].float()
