"""Seeds that a script sets, and what a generator's state is."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from weft.diagnose.record.patching import Undo, replace, together, when_imported
from weft.diagnose.record.recorder import Recorder
from weft.runs.evidence import Seeded

SEEDERS = {
    "torch": ("torch", "manual_seed"),
    "torch.random": ("torch", "manual_seed"),
    "torch.cuda": ("torch", "manual_seed"),
    "numpy.random": ("numpy", "seed"),
    "random": ("python", "seed"),
}
"""Modules with the library that they belong to and their function."""


def install(recorder: Recorder) -> Undo:
    """Look at the functions that seed."""
    undos: list[Undo] = []

    def patch(library: str, name: str, module: ModuleType) -> None:
        undos.append(replace(module, name, partial(_seeder, recorder, library)))

    for module, (library, name) in SEEDERS.items():
        undos.append(when_imported(module, partial(patch, library, name)))
    undos.append(
        when_imported(
            "numpy.random",
            lambda module: undos.append(
                replace(module, "default_rng", partial(_seeder, recorder, "numpy"))
            ),
        )
    )
    return together(undos)


def _seeder(recorder: Recorder, library: str, original: Any) -> Callable[..., Any]:
    if hasattr(original, "seeds"):  # one module has it from another
        return partial(original)

    def seeder(*args: Any, **kwargs: Any) -> Any:
        if recorder.watching:
            with recorder.aside():
                given: Any = next(iter((*args, *kwargs.values())), None)
                if hasattr(given, "__index__"):
                    where = recorder.where()
                    recorder.emit(Seeded(library=library, seed=int(given), where=where))
        return original(*args, **kwargs)

    seeder.seeds = library  # type: ignore[attr-defined]
    return seeder


def random_state() -> np.ndarray | None:
    """The state of PyTorch's generator on the CPU [S]; None without PyTorch."""
    torch = sys.modules.get("torch")
    return None if torch is None else np.asarray(torch.get_rng_state().numpy(), np.uint8)


def random_digest() -> str | None:
    """Digest of the state of PyTorch's generator on the CPU and on the current accelerator."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    made = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        made.update(torch.cuda.get_rng_state().numpy().tobytes())
    return made.hexdigest()[:16]
