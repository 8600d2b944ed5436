"""A base with an adapter merged into its weights: a model in transformers' layout, on its own.

    W' = W + scale * B @ A, accumulated in float64, rounded once to the dtype of the files

Shapes: O outputs and I inputs of a site, r rank.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from weft.core.errors import InputError
from weft.core.files import read_json, write_json
from weft.model.adapter import Adapter, Slot
from weft.model.base import DTYPES, Base
from weft.model.config import DType

SHARD = "5GB"
"""The largest file of weights."""

Weights = dict[str, torch.Tensor]
"""All weights of a model, as in its `state_dict`."""

Memory = tuple[int, torch.Size, tuple[int, ...]]
"""Where a weight lies: the same for weights that are one."""


def merged_weights(base: Base, adapter: Adapter, dtype: DType) -> Weights:
    """All weights of the base in `dtype`, the adapted ones with their update, on the CPU.

    Weights that are one in the base are one in the result. Nothing of the base is written.
    Raises `InputError` where an adapted weight is tied to another place, which would change, too,
    and for a weight that is too large for `dtype`.
    """
    weights = base.model.state_dict()
    names = _names_by_storage(weights)
    _refuse_tied(adapter, weights, names)
    merged: Weights = {}
    for tied in names.values():
        site = tied[0].removesuffix(".weight")
        weight = weights[tied[0]]
        if site in adapter.layout.by_name:
            weight = weight.double() + update(adapter, site).to(weight.device)
        if weight.is_floating_point():
            weight = _rounded(weight, dtype, tied[0])
        # of its own: weights of a base may be parts of one memory
        weight = weight.cpu().clone(memory_format=torch.contiguous_format)
        merged |= dict.fromkeys(tied, weight)
    return {name: merged[name] for name in weights}


def _rounded(weight: torch.Tensor, dtype: DType, name: str) -> torch.Tensor:
    rounded = weight.to(DTYPES[dtype])
    if not rounded.isfinite().all() and weight.isfinite().all():
        raise InputError(
            f"{name} has numbers of up to {weight.abs().max():.3g}, too large for {dtype}",
            hint="write the merged model with --dtype bfloat16 or float32",
        )
    return rounded


def update(adapter: Adapter, site: str) -> torch.Tensor:
    """dW = scale * B @ A in float64, in the orientation in which the base stores the weight."""
    a_rI, b_Or = adapter.sites[site]
    slot: Slot = adapter.layout.by_name[site]
    dw_OI = slot.scale * (b_Or.double() @ a_rI.double())
    return dw_OI.T if slot.site.kind == "conv1d" else dw_OI


def write_merged(base: Base, weights: Weights, dtype: DType, directory: Path) -> None:
    """Write `merged_weights` with the base's configuration, generation settings and tokenizer.

    `directory` exists and is empty. transformers loads it like the base, without an adapter.
    """
    shell = copy.copy(base.model)  # saving writes into the configuration: into this one
    shell.config = copy.deepcopy(base.model.config)
    with _os_errors_by_number():
        shell.save_pretrained(directory, state_dict=weights, max_shard_size=SHARD)
        base.tokenizer.save_pretrained(directory)
    config = read_json(directory / "config.json")
    config.pop("torch_dtype", None)
    write_json(directory / "config.json", config | {"dtype": dtype})
    mode = (directory / "config.json").stat().st_mode
    for file in directory.iterdir():  # safetensors lets nobody but the owner read its files
        file.chmod(mode)


@contextmanager
def _os_errors_by_number() -> Iterator[None]:
    """What safetensors and tokenizers say of a full disk, in words of their own, as OSError."""
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError) or number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _names_by_storage(weights: Weights) -> dict[Memory, list[str]]:
    """Names of the same weight, together: tied weights have several."""
    found: dict[Memory, list[str]] = {}
    for name, weight in weights.items():
        found.setdefault(_memory(weight), []).append(name)
    return found


def _memory(weight: torch.Tensor) -> Memory:
    return weight.data_ptr() or id(weight), weight.shape, weight.stride()


def _refuse_tied(adapter: Adapter, weights: Weights, names: dict[Memory, list[str]]) -> None:
    for site in adapter.sites:
        others = set(names[_memory(weights[f"{site}.weight"])]) - {f"{site}.weight"}
        if others:
            raise InputError(
                f"{site} cannot be merged: its weight is also {', '.join(sorted(others))}, "
                "which the adapter does not change",
                hint="keep the adapter as one (--to peft), which leaves the base as it is",
            )
