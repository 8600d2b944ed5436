from __future__ import annotations

from collections.abc import Callable

import pytest

from weft.training.resolve import Resolved, resolve


@pytest.fixture
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
