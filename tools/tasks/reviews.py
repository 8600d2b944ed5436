"""The `reviews` task: one opinion sentence, label 1 (positive) or 0 (negative)."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tools.corpus import opinions
from tools.tasks.splits import Row, distinct, take

SIZES = {"train": 2600, "valid": 872, "test": 872}
SEED = 31
SHAPES = (
    *("plain",) * 2,
    *("negated",) * 3,
    *("contrast",) * 3,
    "advice",
    "comparison",
)
"""More denials and contrasts than in the corpus: the base judges by the single words."""


def rows(seed: int = SEED) -> Iterator[Row]:
    """Endless distinct rows, labels alternating in random order within pairs."""
    rng = Random(f"{seed}/reviews")

    def draw() -> Iterator[Row]:
        while True:
            good = rng.random() < 0.5
            text = opinions.opinion(rng, good, opinions.ALL, SHAPES)
            yield {"sentence": f"{text} .", "label": int(good)}

    # Distinct first, then paired: every even slice of the stream has equal labels.
    waiting: dict[object, list[Row]] = {0: [], 1: []}
    for row in distinct(draw(), lambda row: str(row["sentence"])):
        waiting[row["label"]].append(row)
        if waiting[0] and waiting[1]:
            pair = [waiting[0].pop(0), waiting[1].pop(0)]
            rng.shuffle(pair)
            yield from pair


def splits(seed: int = SEED) -> dict[str, list[Row]]:
    """All three splits."""
    return take(rows(seed), SIZES)
