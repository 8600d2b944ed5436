"""Two subjects on the same data: losses, divergences, and texts side by side.

Differences are B minus A, with a paired bootstrap over examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.analysis.statistics import Interval, bootstrap, paired_bootstrap
from weft.core.errors import InputError
from weft.core.keys import Key
from weft.core.table import ScoreRow

if TYPE_CHECKING:
    from weft.model.config import DType
    from weft.training.evaluate import Watch


@dataclass(frozen=True)
class Sample:
    """One prompt with its reference, and what each of the two says, greedily."""

    id: str
    prompt: str
    reference: str
    a: str
    b: str


@dataclass(frozen=True)
class Comparison:
    """What differs between `a` and `b`, and by how much."""

    a: str
    b: str
    base: str
    split: str
    examples: int
    supervised_tokens: int
    loss: Mapping[str, float]
    perplexity: Mapping[str, float]
    metrics: Mapping[str, Mapping[str, float]]  # metric to member to value
    loss_difference: Interval
    perplexity_difference: Interval
    divergence: Mapping[str, Interval]  # mean a supervised token
    largest: Mapping[str, float]  # at any one position
    samples: tuple[Sample, ...]
    notices: tuple[str, ...]  # of the rows: what was cut, skipped or guessed

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain["samples"] = [vars(sample) for sample in self.samples]
        plain["loss_difference"] = vars(self.loss_difference)
        plain["perplexity_difference"] = vars(self.perplexity_difference)
        plain["divergence"] = {name: vars(value) for name, value in self.divergence.items()}
        return plain


def compare(
    a: str,
    b: str,
    *,
    base: str | None = None,
    dtype: DType | None = None,
    task: str | None = None,
    data: Path | None = None,
    split: str = "valid",
    rows: int | None = None,
    batch_size: int = 8,
    prompts: int = 4,
    max_tokens: int = 64,
    watch: Watch | None = None,
) -> Comparison:
    """Compare two of: `base`, a base's name, an adapter directory, a run.

    Both are scored on the same tokens of a split in one forward; texts are generated greedily
    for the first `prompts` rows. Raises `InputError` where a reference means several adapters.
    """
    from weft.training.contrast import contrast
    from weft.training.evaluate import evaluate
    from weft.training.refs import data_for, load_split, open_subject

    subject = open_subject([a, b], base=base, dtype=dtype)
    if len(subject.adapters) != 2:
        raise InputError(
            f"{a} and {b} together mean {len(subject.adapters)} adapters: "
            f"{', '.join(subject.adapters)}",
            hint="name one member of a run, as RUN/members/NAME",
        )
    rows_of = load_split(subject, data_for(subject.places, task=task, path=data), split)
    bank, engine = subject.bank, subject.engine
    name_a, name_b = bank.members
    scores = evaluate(engine, bank, rows_of, batch_size=batch_size, rows=rows)
    apart = contrast(engine, bank, rows_of, rows=rows, batch_size=batch_size, watch=watch)
    row_a, row_b = scores.table.row(name_a), scores.table.row(name_b)
    key = Key.of(0).fold("compare")
    return Comparison(
        a=name_a,
        b=name_b,
        base=engine.base.ref,
        split=split,
        examples=len(row_a.ids),
        supervised_tokens=int(row_a.counts.sum()),
        loss={name_a: row_a.mean, name_b: row_b.mean},
        perplexity={row.member: perplexity(row.mean) for row in (row_a, row_b)},
        metrics={
            metric: dict(zip(bank.members, map(float, values_N), strict=True))
            for metric, values_N in scores.metrics.items()
        },
        loss_difference=_difference(row_a, row_b, key),
        perplexity_difference=_difference(row_a, row_b, key, np.exp),
        divergence={
            name: bootstrap(row.sums, row.counts, key)
            for name, row in ((n, apart.table.row(n)) for n in apart.table.members)
        },
        largest=apart.largest,
        samples=_samples(engine, bank, rows_of, prompts, max_tokens),
        notices=rows_of.notices,
    )


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that is beyond any float."""
    return math.exp(loss) if loss < 709 else math.inf


def _difference(a: ScoreRow, b: ScoreRow, key: Key, of: Any = np.asarray) -> Interval:
    return paired_bootstrap(a.sums, a.counts, b.sums, b.counts, key, of=of)


def _samples(
    engine: Any, bank: Any, split: Any, prompts: int, max_tokens: int
) -> tuple[Sample, ...]:
    items = split.items[:prompts]
    if not items:
        return ()
    decode = engine.base.tokenizer.decode
    said_a, said_b = engine.greedy(bank, [item.prompt_ids for item in items], max_tokens)
    return tuple(
        Sample(
            item.example.id,
            item.prompt,
            item.reference,
            decode(ids_a, skip_special_tokens=True),
            decode(ids_b, skip_special_tokens=True),
        )
        for item, ids_a, ids_b in zip(items, said_a, said_b, strict=True)
    )
