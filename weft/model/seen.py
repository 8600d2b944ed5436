"""The weights of a model as evidence: digests and norms, and what is tied to what."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from weft.runs.evidence import TensorSeen
from weft.runs.sketch import probes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_NO_FUNCTION = {
    "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id",
    "output_attentions", "output_hidden_states", "problem_type", "return_dict", "use_cache",
}  # fmt: skip
"""Keys of a configuration that say nothing of the function, or that stand elsewhere."""


def tensor_seen(tensor: torch.Tensor) -> TensorSeen:
    """Shape, dtype, digest and norm; two tensors have one digest where all of their bits agree.

    Of a float32 tensor the digest is that of `weft.runs.sketch.digest`.
    """
    plain = tensor.detach().to("cpu").contiguous()
    dtype = str(plain.dtype).removeprefix("torch.")
    made = hashlib.sha256(f"{dtype}{tuple(plain.shape)}".encode())
    made.update(plain.view(-1).view(torch.uint8).numpy().data)
    norm = float(plain.float().norm()) if plain.is_floating_point() else 0.0
    return TensorSeen(
        shape=tuple(plain.shape), dtype=dtype, digest=made.hexdigest()[:16], norm=norm
    )


def tied(tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[str, ...], ...]:
    """Names that share their storage, in groups of two and more."""
    groups: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((tensor.data_ptr(), tuple(tensor.shape)), []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def sketch(weight_OI: torch.Tensor) -> torch.Tensor:
    """What a matrix makes of the fixed probes [I, K], in float32: [O, K]."""
    matrix_OI = weight_OI.detach().float()
    return matrix_OI @ torch.from_numpy(probes(matrix_OI.shape[1])).to(matrix_OI.device)


def config_seen(config: PretrainedConfig) -> dict[str, Any]:
    """The keys of a model's configuration that may decide its function."""
    return {
        key: value
        for key, value in config.to_dict().items()
        if not key.startswith("_") and key not in _NO_FUNCTION and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, str | int | float | bool)
