"""What a model was called with and what it returned, by whatever names its class has for it.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

MAX_NLL_VALUES = 2**26
"""Logits of at most so many values are turned into log-probabilities."""

MASKS = ("attention_mask", "mask", "attn_mask", "padding_mask")
CACHES = ("past_key_values", "past_key_value", "cache", "kv_cache", "past")
NO_IDS = (*MASKS, "labels", "targets", "position_ids", "token_type_ids", "cache_position")
"""Other integers in two axes."""


@dataclass(frozen=True, eq=False)
class Call:
    """What a model was called with."""

    ids: torch.Tensor  # [B, T]
    mask: torch.Tensor | None  # [B, T or more], 0 at padding; no other kind of mask
    labels: torch.Tensor | None  # [B, T]
    given_positions: torch.Tensor | None
    past: int
    names: tuple[str | None, str | None, str | None] = (None, None, None)
    """What ids, mask and labels are called; None: the first argument, or not given."""
    autocast: torch.dtype | None = None  # to which matrix products were cast
    odd_mask: bool = False
    """It had a mask that is none of padding: it could not be called like this again."""

    @property
    def real(self) -> torch.Tensor:
        """Which of the fed positions are not padding: bool [B, T]."""
        length = self.ids.shape[1]
        if self.mask is None or self.mask.shape[1] < length:
            return torch.ones_like(self.ids, dtype=torch.bool)
        return self.mask[:, -length:].bool()

    @property
    def last(self) -> torch.Tensor:
        """The last real position of each row: [B]."""
        places = torch.arange(1, self.ids.shape[1] + 1, device=self.ids.device)
        return (self.real * places).argmax(dim=1)

    def at_last(self, values: torch.Tensor) -> torch.Tensor:
        """Of [B, T or fewer, *] what stands at each row's last real position: [B, *]."""
        if self.mask is None or self.ids.shape[1] == 1:
            return values.detach()[:, -1]
        missing = self.ids.shape[1] - values.shape[1]
        index = (self.last.to(values.device) - missing).clamp(min=0)
        return values.detach()[torch.arange(values.shape[0], device=values.device), index]

    def inputs(self, **changes: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments that call the model like this again, without a cache."""
        ids_name, mask_name, labels_name = self.names
        ids = changes.pop("ids", self.ids)
        named = {mask_name: self.mask, labels_name: self.labels}
        if self.given_positions is not None:
            named["position_ids"] = self.given_positions
        given = {str(name): value for name, value in named.items() if name and value is not None}
        for key, name in (("mask", mask_name), ("labels", labels_name)):
            if key in changes:
                value = changes.pop(key)
                if name is not None:
                    given[name] = value
        given |= changes
        given = {key: value for key, value in given.items() if value is not None}
        return ((ids,), given) if ids_name is None else ((), {ids_name: ids, **given})

    def first(self, rows: int) -> Call:
        """The first rows, as copies."""
        return self._each(lambda tensor: tensor[:rows].clone())

    def rows(self, part: slice) -> Call:
        """Some of the rows."""
        return self._each(lambda tensor: tensor[part])

    def to(self, device: torch.device) -> Call:
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, make: Callable[[torch.Tensor], torch.Tensor]) -> Call:
        mask, labels, positions = (
            None if each is None else make(each)
            for each in (self.mask, self.labels, self.given_positions)
        )
        return replace(
            self, ids=make(self.ids), mask=mask, labels=labels, given_positions=positions
        )

    def mask_numpy(self) -> np.ndarray | None:
        """The mask as zeros and ones."""
        return None if self.mask is None else (self.mask != 0).cpu().numpy()

    def nll(self, logits: torch.Tensor) -> np.ndarray | None:
        """Nats of each next given token, float32 [B, T - 1]; None where that is too much."""
        if logits.shape[1] != self.ids.shape[1] or logits.numel() > MAX_NLL_VALUES:
            return None
        rows = [
            -torch.log_softmax(row[:-1].detach().float(), dim=-1).gather(1, ids[1:, None])[:, 0]
            for row, ids in zip(logits, self.ids.to(logits.device), strict=True)
        ]
        return torch.stack(rows).cpu().numpy()


def read_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """The inputs by name; None where none of them is token ids."""
    given: dict[str | None, Any] = {name: value for name, value in kwargs.items()}
    names = _positional(type(module).forward)
    for index, value in enumerate(args):
        known = index < len(names)
        given.setdefault(names[index] if known else None if index == 0 else f" {index}", value)
    ids_name: str | None = "input_ids"
    if given.get("input_ids") is None:
        ids_name = " "
        for name, value in reversed(given.items()):
            if name not in NO_IDS and is_ids(value):
                ids_name = name
    ids = given.get(ids_name)
    if ids is None or not is_ids(ids) or given.get("inputs_embeds") is not None:
        return None
    mask_name = next((name for name in MASKS if given.get(name) is not None), None)
    mask = _padding_mask(given.get(mask_name), ids)
    odd_mask = mask_name is not None and mask is None
    labels, positions = given.get("labels"), given.get("position_ids")
    same = (
        isinstance(labels, torch.Tensor) and labels.shape == ids.shape
    )  # else they are of other tokens
    kind = ids.device.type
    return Call(
        ids.detach(),
        mask,
        labels if same else None,
        positions if isinstance(positions, torch.Tensor) else None,
        _cached(
            next((given[name] for name in CACHES if given.get(name) is not None), None), module
        ),
        (
            ids_name,
            mask_name if mask is not None else None,
            "labels" if same else None,
        ),
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        odd_mask,
    )


def _padding_mask(mask: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """A mask that says which positions are padding, a row each; None for what is none.

    A mask of a form by itself, such as one position by another or numbers to be added, is none.
    """
    if not _is_matrix(mask) or mask.shape[0] not in (1, len(ids)) or mask.shape[1] < ids.shape[1]:
        return None
    if mask.is_floating_point() and not bool(((mask == 0) | (mask == 1)).all()):
        return None
    found: torch.Tensor = mask.detach().expand(len(ids), -1)
    return found


@cache
def _positional(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of a forward's parameters in order."""
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [each.name for each in parameters if each.kind in plain][1:]
    return tuple(names) or ("input_ids",)


def is_ids(value: Any) -> bool:
    """Whether something can be token ids."""
    return isinstance(value, torch.Tensor) and value.dim() == 2 and not value.is_floating_point()


def _is_matrix(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 2


def _cached(cache: Any, module: nn.Module) -> int:
    """Positions of the text in a cache, without those of a prompt that PEFT has tuned."""
    if hasattr(cache, "get_seq_length"):
        return max(int(cache.get_seq_length()) - _virtual(module), 0)
    while isinstance(cache, list | tuple) and cache:
        cache = cache[0]
    if isinstance(cache, torch.Tensor) and cache.dim() == 4:
        return cache.shape[2]
    return 0


def _virtual(module: nn.Module) -> int:
    """Positions that a model of PEFT, while it generates with this one, puts before all text."""
    driver = getattr(getattr(module, "prepare_inputs_for_generation", None), "__self__", None)
    return int(getattr(getattr(driver, "active_peft_config", None), "num_virtual_tokens", 0) or 0)


def read_output(output: Any, call: Call) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Logits [B, T or fewer, V] and loss, where the model returns them."""
    logits = getattr(output, "logits", None)
    loss = getattr(output, "loss", None)
    if logits is None and isinstance(output, dict):
        logits, loss = output.get("logits"), output.get("loss")
    if logits is None:
        parts = output if isinstance(output, list | tuple) else [output]
        tensors = [part for part in parts if isinstance(part, torch.Tensor)]
        logits = next((part for part in tensors if part.dim() == 3), None)
        loss = loss if loss is not None else next((p for p in tensors if p.dim() == 0), None)
    right = (
        isinstance(logits, torch.Tensor)
        and logits.dim() == 3
        and logits.shape[0] == call.ids.shape[0]
        and logits.shape[1] <= call.ids.shape[1]
        and logits.is_floating_point()
    )
    scalar = isinstance(loss, torch.Tensor) and loss.numel() == 1
    return (logits if right else None), (loss if scalar else None)
