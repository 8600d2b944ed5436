"""A base with an adapter merged into its weights: a model in transformers' layout, on its own."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from weft.core.files import read_json, write_json
from weft.model.adapter import Adapter
from weft.model.base import DTYPES, Base
from weft.model.config import DType
from weft.model.merging import Weights, merged_weight, names_by_memory, refuse_tied, rounded

SHARD = "5GB"
"""The largest file of weights."""


def merged_weights(base: Base, adapter: Adapter, dtype: DType) -> Weights:
    """All weights of the base in `dtype`, the adapted ones with their update, on the CPU.

    Weights that are one in the base are one in the result. Nothing of the base is written.
    Raises `InputError` where an adapted weight is tied to another place, which would change, too,
    and for a weight that is too large for `dtype`.
    """
    weights = base.model.state_dict()
    names = names_by_memory(weights)
    refuse_tied(adapter, names)
    merged: Weights = {}
    for tied in names.values():
        site = tied[0].removesuffix(".weight")
        weight = weights[tied[0]]
        if site in adapter.layout.by_name:
            weight = merged_weight(weight, adapter, site, DTYPES[dtype])
        elif weight.is_floating_point():
            weight = rounded(weight, DTYPES[dtype], tied[0])
        # of its own: weights of a base may be parts of one memory
        weight = weight.cpu().clone(memory_format=torch.contiguous_format)
        merged |= dict.fromkeys(tied, weight)
    return {name: merged[name] for name in weights}


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
