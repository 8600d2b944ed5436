"""What members said to be graded: kept for people, and how far it is from what the base would say.

Shapes: N members, E examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from weft.core.batch import IGNORE, Example
from weft.core.table import ScoreTable
from weft.data.split import Item, Split
from weft.engines.local import LocalEngine
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.training.contrast import contrast
from weft.training.evaluate import Evaluation, Said

SHOWN = 16
"""Completions of a member that are kept."""

KL = "kl_to_base"
"""KL(member || base) in nats a token of the member's own completions."""


def with_kl(
    found: Evaluation,
    engine: LocalEngine,
    adapters: Mapping[str, Adapter | None],
    split: Split,
) -> Evaluation:
    """The same evaluation of a reward, with `KL` beside its parts; `adapters` by member."""
    rows = split.items[: len(found.table.ids)]
    counts_NE = np.zeros(found.table.counts.shape, dtype=np.int64)
    sums_NE = np.zeros(counts_NE.shape)
    for number, (member, said) in enumerate(zip(found.table.members, found.said, strict=True)):
        examples = said_examples(rows, said)
        counts_NE[number] = [len(ids) for ids in said.ids]
        if adapters[member] is None or not examples:
            continue
        pair = Bank.of({member: adapters[member], "the base": None})
        apart = contrast(engine, pair, examples, batch_size=found.batch_size)
        sums_NE[number, counts_NE[number] > 0] = apart.table.row("kl_ab").sums
    table = ScoreTable(found.table.members, found.table.ids, sums_NE, counts_NE)
    return replace(
        found, parts=found.parts | {KL: table}, metrics=found.metrics | {KL: table.means()}
    )


def said_examples(rows: tuple[Item, ...], said: Said) -> tuple[Example, ...]:
    """Prompts with what a member said, whose tokens are supervised; without those of no token."""
    return tuple(
        _example(item, np.array(ids, dtype=np.int64))
        for item, ids in zip(rows, said.ids, strict=True)
        if ids
    )


def completions(found: Evaluation, split: Split) -> dict[str, list[dict[str, Any]]]:
    """The first completions of every member, with their rewards and what these are made of."""
    tables = {found.objective.hits: found.hits, **found.parts}
    return {
        member: [
            {
                "id": item.example.id,
                "prompt": item.prompt,
                "completion": said.texts[column],
                **{name: _cell(table, number, column) for name, table in tables.items()},
            }
            for column, item in enumerate(split.items[: min(SHOWN, len(found.table.ids))])
        ]
        for number, (member, said) in enumerate(zip(found.table.members, found.said, strict=True))
    }


def _example(item: Item, ids_T: np.ndarray) -> Example:
    assert item.example.goal is not None
    prompt_T = item.example.goal.prompt_T
    labels_T = np.concatenate([np.full(len(prompt_T), IGNORE), ids_T])
    return Example(item.example.id, np.concatenate([prompt_T, ids_T]), labels_T)


def _cell(table: ScoreTable, number: int, column: int) -> float | None:
    """A value of one completion; None where it was not graded, or has no such part."""
    count = int(table.counts[number, column])
    return float(table.sums[number, column]) / count if count else None
