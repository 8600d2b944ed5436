"""Which models there are, by themselves or any wrapper of them."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

HELD_BYTES = 2**30
"""A model of at most this size is kept alive until the recording ends, so that it can be checked
against itself; a larger one is let go when the script lets it go."""


class Models:
    """The models of a script: `model-0`, `model-1`, ... in order of first use."""

    def __init__(self) -> None:
        self._roots: list[weakref.ref[torch.nn.Module]] = []
        self._held: list[torch.nn.Module] = []
        self._keys: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()

    def key(self, module: torch.nn.Module) -> str:
        """The key of a model, new or known, by itself, any wrapper of it, or its inner model."""
        from weft.diagnose.record.anatomy import unwrapped

        known = self._keys.get(module)
        if known is not None:
            return known
        root = unwrapped(module)
        key = next(
            (
                name
                for name, live in self.live().items()
                if live is root or any(part is root for part in live.modules())
            ),
            None,
        )
        if key is None:
            key = self._new(root)
        self._keys[module] = key
        return key

    def root(self, key: str) -> torch.nn.Module | None:
        """A model by its key, while it lives."""
        return self._roots[int(key.removeprefix("model-"))]()

    def live(self) -> dict[str, torch.nn.Module]:
        """Models by key that are there still."""
        found = {f"model-{number}": root() for number, root in enumerate(self._roots)}
        return {key: root for key, root in found.items() if root is not None}

    def _new(self, root: torch.nn.Module) -> str:
        self._roots.append(weakref.ref(root))
        size = sum(each.numel() * each.element_size() for each in root.parameters())
        if size <= HELD_BYTES:
            self._held = [*self._held[-1:], root]
        return f"model-{len(self._roots) - 1}"
