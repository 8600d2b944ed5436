"""Tiny bases on disk, adapters on them, and rows as a script would feed them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft.diagnose.proof.replica import BaseValue, Update


@pytest.fixture(scope="session")
def base_on_disk(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any]
) -> Callable[..., BaseValue]:
    """A base of an architecture, saved where a replica can load it."""
    made: dict[tuple[str, str, str], BaseValue] = {}

    def make(architecture: str = "llama", dtype: str = "float32", attention: str = "") -> BaseValue:
        key = (architecture, dtype, attention)
        if key not in made:
            where: Path = tmp_path_factory.mktemp("bases") / architecture
            make_model(architecture).save_pretrained(where)
            made[key] = BaseValue(str(where), dtype, attention)
        return made[key]

    return make


def updates(model: Any, names: str, scale: float = 2.0, rank: int = 3, seed: int = 0) -> dict:
    """Random updates at the linear modules whose names end in one of `names`."""
    import torch

    drawn = np.random.default_rng(seed)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(tuple(names.split())):
            a = drawn.standard_normal((rank, module.in_features)).astype(np.float32) * 0.2
            b = drawn.standard_normal((module.out_features, rank)).astype(np.float32) * 0.2
            found[name] = Update(a, b, scale)
    return found
