"""Models by what they are: one root below all wrappers, and names of modules without them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from weft.diagnose.record.recorder import Recorder

WRAPPED = ("_orig_mod", "module")
"""Where torch.compile, data parallelism and the like keep the model that they wrap."""


class Models:
    """The models of a script: `model-0`, `model-1`, ... in order of first use."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._roots: list[torch.nn.Module] = []

    def key(self, module: torch.nn.Module) -> str:
        """The key of a model, new or known, by itself or any wrapper of it."""
        root = unwrapped(module)
        for number, known in enumerate(self._roots):
            if known is root or any(part is root for part in known.modules()):
                return f"model-{number}"
        self._roots.append(root)
        return f"model-{len(self._roots) - 1}"

    def live(self) -> dict[str, torch.nn.Module]:
        """Roots by key."""
        return {f"model-{number}": root for number, root in enumerate(self._roots)}


def unwrapped(module: Any) -> torch.nn.Module:
    """The model below wrappers of PEFT, torch.compile and data parallelism."""
    while True:
        inner = next((getattr(module, name, None) for name in WRAPPED), None)
        if inner is None and hasattr(module, "peft_config"):
            inner = getattr(getattr(module, "base_model", None), "model", None)
        if inner is None or inner is module:
            return module
        module = inner


def plain_name(name: str) -> str:
    """A module's name without the wrappers in it."""
    for prefix in ("module.", "_orig_mod.", "base_model.model."):
        name = name.removeprefix(prefix)
    return name.removesuffix(".base_layer").replace(".base_layer.", ".")
