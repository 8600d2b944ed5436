"""Cheap fingerprints of live tensors: a few points of each, and digests of the small ones.

Shapes: N tensors, S points of them all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from weft.diagnose.record.anatomy import Lora, loras, plain_name

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


@dataclass(frozen=True, eq=False)
class Parts:
    """The tensors of a model by what they are."""

    adapters: list[Lora]
    factors: dict[str, torch.Tensor]  # by module and `A` or `B`
    base: dict[str, torch.Tensor]  # by plain name
    adapted: dict[str, str]  # by name of a tensor of the base, the module that adapts it

    @classmethod
    def of(cls, root: nn.Module) -> Parts:
        """Tell adapters and base apart by structure."""
        adapters = loras(root)
        factors: dict[str, torch.Tensor] = {}
        for lora in adapters:
            first = {part.data_ptr() for part in lora.parts if _begins(lora.factors()[0], part)}
            count: dict[str, int] = {}
            for part in lora.parts:
                letter = "A" if part.data_ptr() in first else "B"
                count[letter] = count.get(letter, 0) + 1
                number = "" if count[letter] == 1 else str(count[letter])
                factors[f"{lora.name}.{letter}{number}"] = part
        own = {id(part) for part in factors.values()}
        base: dict[str, torch.Tensor] = {
            plain_name(name): tensor
            for name, tensor in root.named_parameters()
            if id(tensor) not in own
        }
        owners = {id(each): lora.name for lora in adapters for each in lora.base.parameters()}
        adapted = {name: owners[id(each)] for name, each in base.items() if id(each) in owners}
        return cls(adapters, factors, base, adapted)


def _begins(factor: torch.Tensor, part: torch.Tensor) -> bool:
    """Whether a factor is a part, or has it among others side by side."""
    if factor.data_ptr() == part.data_ptr():
        return True
    return factor.shape[1] == part.shape[-1] and factor.shape[0] > part.shape[0]


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of names and all values, as float32."""
    made = hashlib.sha256()
    for name in sorted(tensors):
        made.update(name.encode())
        made.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return made.hexdigest()[:16]


def norm_of(tensors: Sequence[torch.Tensor]) -> float:
    """The norm of all of them together, added up in float64."""
    if not tensors:
        return 0.0
    norms = torch._foreach_norm([tensor.detach().float() for tensor in tensors])
    return float(torch.stack([norm.double() for norm in norms]).square().sum().sqrt())
