"""One call of a model while it runs: its inputs, and what its parts made of them.

Hooks are there during the call only, so that nobody finds them in a copy of the model.

Shapes: B rows, T positions, V vocabulary, L blocks, D hidden size, P projections.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from weft.diagnose.record.anatomy import plain_name, plan_of
from weft.diagnose.record.calls import Call
from weft.diagnose.record.probing import plain_arithmetic, undisturbed
from weft.diagnose.record.recorder import Recorder
from weft.model.finite import first_broken
from weft.model.positions import positions_among
from weft.runs.sketch import projections


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
        # a thread that comes between the two halves of this hook's registration gives no kwargs
        def before(module: nn.Module, args: Any, kwargs: Any = None) -> None:
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
    with undisturbed(watch.root, evaluating=False):
        if watch._random is not None:
            torch.set_rng_state(watch._random)
        with first_broken(watch.root) as found:
            watch.root(input_ids=watch.call.ids, attention_mask=watch.call.mask)
    largest = {plain_name(name): size for name, size in found.largest.items()}
    return "unknown" if found.module is None else plain_name(found.module), largest


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
