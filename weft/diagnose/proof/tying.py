"""Heads that are the embedding, and heads that are not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from weft.core.errors import InputError
from weft.data.tokenizer import resolve_base
from weft.diagnose.proof.replica import BaseValue


def retied(model: nn.Module, base: BaseValue, override: str | None = None) -> nn.Module:
    """The model with its head tied or untied as the base says; all other tensors are shared.

    Where the recording shows the head to be what is loaded, or knows its numbers, it is left.
    """
    ends = _ends(model)
    if base.tied is None or ends is None:
        return model
    embedding, head, name = ends
    one = head.weight is embedding.weight
    if base.tied == one or (not base.tied and (f"{name}.weight" in base.changed or base.digests)):
        return model
    own = embedding.weight if base.tied else _filed(override or base.load, f"{name}.weight")
    if own is None or own.shape != head.weight.shape:
        return model
    shared = (*model.parameters(), *model.buffers())
    made = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    weight = own if base.tied else nn.Parameter(own.to(head.weight.dtype), False)
    made.get_submodule(name).weight = weight
    return made


def _ends(model: nn.Module) -> tuple[Any, Any, str] | None:
    embedding, head = (
        getattr(model, get, lambda: None)()
        for get in ("get_input_embeddings", "get_output_embeddings")
    )
    name = next((name for name, each in model.named_modules() if each is head), None)
    if name is None or embedding is None or not hasattr(head, "weight"):
        return None
    return embedding, head, name


def _filed(load: str | None, name: str) -> torch.Tensor | None:
    """A tensor of the files of a base, whether or not loading takes it."""
    try:
        files = sorted(Path(resolve_base(load)).glob("*.safetensors")) if load else []
    except InputError:
        return None
    for file in files:
        try:
            with safe_open(file, "pt") as held:
                if name in held.keys():  # noqa: SIM118 (no mapping)
                    tensor: torch.Tensor = held.get_tensor(name)
                    return tensor
        except (OSError, SafetensorError):
            continue
    return None
