"""The tensors of an adapter's file as PyTorch's, in the dtype that they have there."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from weft.core.errors import InputError
from weft.formats import arrays


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file; `InputError` for one that is torn or empty."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"cannot read {path} as a safetensors file: {error}",
            hint="it may have been cut short by a download or a copy; fetch it again",
        ) from None
    if not tensors:
        raise InputError(f"{path} holds no tensors")
    return tensors


def read_npz(path: Path) -> dict[str, torch.Tensor]:
    """All arrays of an npz file, without pickles; `InputError` for one that is torn or empty."""
    return {name: torch.from_numpy(array) for name, array in arrays.read_npz(path).items()}
