from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weft.runs.reader import RunReader
from weft.training.resolve import Resolved, resolve


@pytest.fixture(scope="session")
def resolved(small_base: str, rows_dir: str) -> Callable[..., Resolved]:
    """A short run on a tiny base, with overrides."""

    def make(*overrides: str) -> Resolved:
        short = [
            f"base={small_base}",
            f"data.path={rows_dir}/train.jsonl",
            f"data.valid_path={rows_dir}/valid.jsonl",
            "data.max_length=128",
            "adapter.rank=2",
            "adapter.dropout=0.1",
            "optimiser.lr=1e-2",
            "batch_size=4",
            "steps=12",
            "eval.every=4",
            "checkpoint_every=3",
        ]
        return resolve("instruct", [*short, *overrides])

    return make


RANK_ONE = ("adapter.rank=1", "adapter.alpha=16", "adapter.dropout=0", "adapter.layers=last 2")
OF_METHOD = {
    "backprop": ("optimiser.lr=1e-2",),
    "mezo": (
        "method.name=mezo",
        "method.preflight=false",
        "optimiser.name=sgd",
        "optimiser.lr=1e-4",
        "optimiser.schedule=constant",
        "optimiser.warmup_ratio=0",
        "optimiser.clip=null",
    ),
}
QUIET = ("eval.every=0", "keep=last")


@pytest.fixture(scope="session")
def rank_one(resolved: Callable[..., Resolved]) -> Callable[..., Resolved]:
    """The same with a method and a rank-1 adapter of scale 16, which boosting needs."""

    def make(method: str, *overrides: str) -> Resolved:
        return resolved(*RANK_ONE, *OF_METHOD[method], *overrides)

    return make


@pytest.fixture(scope="session")
def lines() -> Callable[[Path, str], list[dict[str, Any]]]:
    """What a run wrote in `steps` or `evidence`, but for how long it took."""

    def read(root: Path, what: str = "steps") -> list[dict[str, Any]]:
        records = getattr(RunReader(root), what)()
        return [{k: v for k, v in each.items() if k != "seconds"} for each in records]

    return read


@pytest.fixture(scope="session")
def events() -> Callable[[Path, str], list[dict[str, Any]]]:
    """The events of one kind that a run recorded."""

    def read(root: Path, kind: str) -> list[dict[str, Any]]:
        return [each for each in RunReader(root).manifest.events if each["kind"] == kind]

    return read
