"""Cheap fingerprints of live tensors: a few points of each, and digests of the small ones.

Shapes: N tensors, S points of them all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from weft.diagnose.record.anatomy import Lora, loras, plain_name
from weft.model.points import Points as Points


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
