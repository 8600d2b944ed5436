"""The `instruct` task: rows with instruction, input and output."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tools.tasks.skills import SKILLS
from tools.tasks.splits import Row, distinct, take

SIZES = {"train": 2600, "valid": 200, "test": 200}
SEED = 33


def rows(seed: int = SEED) -> Iterator[Row]:
    """Endless rows, no two with the same instruction and input."""
    rng = Random(f"{seed}/instruct")

    def draw() -> Iterator[Row]:
        while True:
            instruction, given, output = rng.choice(SKILLS)(rng)
            yield {"instruction": instruction, "input": given, "output": output}

    yield from distinct(draw(), lambda row: f"{row['instruction']} <> {row['input']}")


def splits(seed: int = SEED) -> dict[str, list[Row]]:
    """All three splits."""
    return take(rows(seed), SIZES)
