"""One call of a model while it runs: its inputs, and what its parts made of them.

Hooks are there during the call only, so that nobody finds them in a copy of the model.

Shapes: B rows, T positions, V vocabulary, L blocks, D hidden size, P projections.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from weft.diagnose.record.anatomy import plain_name, plan_of
from weft.diagnose.record.probing import plain_arithmetic, undisturbed
from weft.diagnose.record.recorder import Recorder
from weft.model.positions import positions_among
from weft.runs.sketch import projections

IGNORED = -100
MAX_NLL_VALUES = 2**26
"""Logits of at most so many values are turned into log-probabilities."""

MASKS = ("attention_mask", "mask", "attn_mask", "padding_mask")
CACHES = ("past_key_values", "past_key_value", "cache", "kv_cache", "past")


@dataclass(frozen=True, eq=False)
class Call:
    """What a model was called with."""

    ids: torch.Tensor  # [B, T]
    mask: torch.Tensor | None  # [B, past + T]
    labels: torch.Tensor | None  # [B, T]
    given_positions: torch.Tensor | None
    past: int
    names: tuple[str | None, str | None, str | None] = (None, None, None)
    """What ids, mask and labels are called; None: the first argument, or not given."""
    autocast: torch.dtype | None = None  # to which matrix products were cast

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
        ids_name = next((name for name, value in given.items() if _is_ids(value)), " ")
    ids = given.get(ids_name)
    if ids is None or not _is_ids(ids):
        return None
    mask_name = next((name for name in MASKS if _is_matrix(given.get(name))), None)
    labels, positions = given.get("labels"), given.get("position_ids")
    kind = ids.device.type
    return Call(
        ids.detach(),
        given.get(mask_name) if mask_name else None,
        labels if _is_matrix(labels) else None,
        positions if isinstance(positions, torch.Tensor) else None,
        _cached(next((given[name] for name in CACHES if given.get(name) is not None), None)),
        (ids_name, mask_name, "labels" if _is_matrix(labels) else None),
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
    )


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


def _is_ids(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 2 and not value.is_floating_point()


def _is_matrix(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 2


def _cached(cache: Any) -> int:
    """Positions in a cache."""
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    while isinstance(cache, list | tuple) and cache:
        cache = cache[0]
    if isinstance(cache, torch.Tensor) and cache.dim() == 4:
        return cache.shape[2]
    return 0


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


class Watch:
    """Watches one call of a model."""

    def __init__(
        self,
        recorder: Recorder,
        model: str,
        root: nn.Module,
        called: nn.Module,
        call: Call,
        phase: Literal["prefill", "decode", "score", "train"],
        rows: int,
        follows: bool,
    ) -> None:
        """Hidden states are kept of so many `rows`."""
        self.recorder = recorder
        self.model, self.root, self.called, self.call = model, root, called, call
        self.phase, self.rows, self.follows = phase, rows, follows
        self.grad = torch.is_grad_enabled()
        self.dropouts = _dropouts(root)
        self._positions: torch.Tensor | None = None
        self._dtype: torch.dtype | None = None
        self._hidden: list[torch.Tensor] = []
        self._sketches: list[torch.Tensor] = []
        self._random = _generator_state() if root.training else None
        self._thread = threading.get_ident()  # another one may run the model, too
        self._hooks: list[Any] = []
        if not hasattr(called, "_orig_mod"):  # a compiled model would be compiled again
            self._place_hooks()

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    @property
    def concerned(self) -> bool:
        """Whether the parts run for this call, not for one of another thread."""
        return threading.get_ident() == self._thread

    def _place_hooks(self) -> None:
        plan = plan_of(self.root)
        layers = plan.blocks
        for module in plan.positions:
            self._hook(module, self._saw_positions)
        if layers:
            self._hook(layers[0], self._saw_positions)
        if self.rows and layers:
            self._hook(layers[0], self._saw_hidden)
        for layer in layers if self.rows else layers[-1:]:
            self._hooks.append(layer.register_forward_hook(partial(_after, self)))

    def _hook(self, module: nn.Module, look: Callable[[Any, Any], None]) -> None:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self.concerned:
                with self.recorder.aside():
                    look(args, kwargs)

        self._hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))

    def _saw_positions(self, args: Any, kwargs: Any) -> None:
        if self._positions is not None:
            return
        self._positions = positions_among(args, kwargs, self.call.ids.shape[1])

    def _saw_hidden(self, args: Any, kwargs: Any) -> None:
        state = next(
            (v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor) and v.dim() == 3),
            None,
        )
        if state is not None:
            self._keep(state)

    def _keep(self, state: torch.Tensor) -> None:
        self._dtype = state.dtype
        if not self.rows or state.shape[:2] != self.call.ids.shape:
            return
        with torch.no_grad(), plain_arithmetic():
            self._hidden.append(self.call.at_last(state)[: self.rows].float().cpu())
            matrix = torch.from_numpy(projections(state.shape[-1])).to(state.device)
            self._sketches.append((state[: self.rows].detach().float() @ matrix).cpu())

    def positions(self) -> np.ndarray | None:
        """The positions that the model used [B, T], or else those that it was given."""
        seen = self._positions if self._positions is not None else self.call.given_positions
        if seen is None:
            return None
        rows, length = self.call.ids.shape
        return seen.expand(rows, length).cpu().numpy() if seen.dim() == 2 else None

    def hidden(self) -> dict[str, np.ndarray]:
        """What went into the first block and came out of each: arrays of the event."""
        if len(self._hidden) < 2 or len({each.shape for each in self._hidden}) > 1:
            return {}
        return {
            "hidden": torch.stack(self._hidden).numpy(),
            "sketch": torch.stack(self._sketches).numpy(),
        }

    def dtype(self, logits: torch.Tensor | None) -> str:
        """The type that it computed in: that of what its last block returned."""
        found = self._dtype
        if found is None:
            source = logits if logits is not None else next(self.root.parameters(), None)
            found = None if source is None else source.dtype
        return "" if found is None else str(found).removeprefix("torch.")

    def first_nonfinite(
        self, logits: torch.Tensor | None, loss: torch.Tensor | None
    ) -> tuple[str | None, dict[str, float]]:
        """The first module whose output is not finite, and the largest magnitudes before it."""
        if not _is_broken(logits, self.call.real) and (
            loss is None or math.isfinite(float(loss.detach()))
        ):
            return None, {}
        return _search(self)


def _after(watch: Watch, module: nn.Module, args: Any, output: Any) -> None:
    if not watch.concerned:
        return
    with watch.recorder.aside():
        watch._keep(output[0] if isinstance(output, tuple) else output)


def _is_broken(logits: torch.Tensor | None, real: torch.Tensor) -> bool:
    """Whether logits at real positions are NaN or plus infinity; minus infinity masks a token."""
    if logits is None:
        return False
    sums = logits.detach().sum(dim=-1, dtype=torch.float32)
    kept = real[:, -logits.shape[1] :].to(sums.device)
    odd = ~torch.isfinite(sums) & kept
    if not bool(odd.any()):
        return False
    values = logits.detach()[odd]
    return bool((values.isnan() | values.isposinf()).any())


def _search(watch: Watch) -> tuple[str | None, dict[str, float]]:
    """Run the call again with hooks everywhere; only a pass without a cache can be."""
    if watch.call.past:
        return "unknown (in a pass with a cache)", {}
    largest: dict[str, float] = {}
    first: list[str] = []
    names = {id(module): plain_name(name) for name, module in watch.root.named_modules()}

    def after(module: nn.Module, args: Any, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) and output else output
        if first or not isinstance(state, torch.Tensor) or not state.is_floating_point():
            return
        finite = torch.isfinite(state)
        if bool(finite.all()):
            largest[names[id(module)]] = float(state.detach().abs().max())
        else:
            first.append(names[id(module)] or type(module).__name__)

    with undisturbed(watch.root, evaluating=False):
        if watch._random is not None:
            torch.set_rng_state(watch._random)
        hooks = [
            module.register_forward_hook(after)
            for module in watch.root.modules()
            if module is not watch.root
        ]
        try:
            watch.root(input_ids=watch.call.ids, attention_mask=watch.call.mask)
        finally:
            for hook in hooks:
                hook.remove()
    return (first[0] if first else "unknown"), dict(list(largest.items())[-8:])


def _dropouts(root: nn.Module) -> int:
    """Modules that drop something now."""
    if not root.training and not any(part.training for part in root.children()):
        return 0
    count = 0
    for part in root.modules():
        if part.training:
            if isinstance(part, nn.modules.dropout._DropoutNd):
                count += part.p > 0
            else:
                rate = getattr(part, "attention_dropout", 0.0)
                count += isinstance(rate, float) and rate > 0
    return count


def _generator_state() -> torch.Tensor:
    return torch.get_rng_state()
