"""Where a forward first stops being finite: hooks on every module, for one question."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

LAST = 8
"""Modules before the first broken one whose sizes are kept."""


@dataclass
class Broken:
    """The first module whose output was not finite, if one was, and how large those before were."""

    module: str | None = None
    sizes: dict[str, float] = field(default_factory=dict)

    @property
    def largest(self) -> dict[str, float]:
        """The largest magnitude of the last modules before it, in the order in which they ran."""
        return dict(list(self.sizes.items())[-LAST:])


@contextmanager
def first_broken(model: torch.nn.Module) -> Iterator[Broken]:
    """What forwards within it show; names of modules are those in `model`."""
    found = Broken()

    def looking(name: str) -> Any:
        def look(module: torch.nn.Module, args: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) and output else output
            if found.module is not None or not isinstance(state, torch.Tensor):
                return
            if not state.is_floating_point():
                return
            if bool(torch.isfinite(state).all()):
                found.sizes[name] = float(state.detach().abs().max()) if state.numel() else 0.0
            else:
                found.module = name

        return look

    hooks = [
        module.register_forward_hook(looking(name))
        for name, module in model.named_modules()
        if module is not model
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
