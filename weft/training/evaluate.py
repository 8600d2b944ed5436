"""Scoring a split: loss, perplexity, and the task's own metric, for every member of a bank.

Shapes: N members, E examples, C candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft.core.batch import IGNORE, Example, batches_of
from weft.core.errors import NumericError
from weft.core.table import ScoreTable
from weft.data.split import Item, Split
from weft.data.task import Task
from weft.data.templates import Judge
from weft.data.tokens import decode_completion, encode_completions
from weft.engines.engine import Engine
from weft.model.bank import Bank
from weft.model.decoding import Decoding

Watch = Callable[[int, int], None]
"""Called with rows done and rows in all; twice through all rows where responses are generated."""

SPARE_TOKENS = 8
"""How many tokens longer than the longest response a generated one may be."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What every member of a bank scored on one split."""

    table: ScoreTable
    metrics: dict[str, np.ndarray]  # name to [N]
    metric: str  # the main one
    split: str
    batch_size: int
    max_length: int
    engine: dict[str, str]  # what computed it

    def record(self, member: str) -> dict[str, Any]:
        """One member's line for `eval.json`."""
        row = self.table.row(member)
        index = self.table.members.index(member)
        return {
            "eval_loss": row.mean,
            "perplexity": math.exp(row.mean) if row.mean < 700 else None,
            "num_batches": math.ceil(len(row.ids) / self.batch_size),
            "num_examples": len(row.ids),
            "supervised_tokens": int(row.counts.sum()),
            "split": self.split,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "engine": self.engine,
            "metric": self.metric,
            "metrics": list(self.metrics),
            **{name: float(values[index]) for name, values in self.metrics.items()},
        }


def evaluate(
    engine: Engine,
    bank: Bank,
    split: Split,
    *,
    batch_size: int,
    rows: int | None = None,
    task_metric: bool = True,
    watch: Watch | None = None,
) -> Evaluation:
    """Score every member on the first `rows` rows of a split (default: all).

    The loss is the sum of token losses over the sum of supervised tokens. A loss that is not
    finite is a `NumericError` that names the member and the examples.
    """
    examples = split.examples[:rows]
    loss_NE, correct_NE, count_E = score_all(engine, bank, examples, batch_size, watch)
    _refuse_not_finite(bank.members, examples, loss_NE)
    count_NE = np.broadcast_to(count_E, loss_NE.shape)
    table = ScoreTable(bank.members, tuple(e.id for e in examples), loss_NE, count_NE)
    metrics = {"token_accuracy": correct_NE.sum(axis=1) / count_E.sum()}
    if task_metric:
        metrics |= task_metrics(engine, bank, split.items[:rows], split.task, batch_size, watch)
    metric = split.task.metric if split.task.metric in metrics else "token_accuracy"
    return Evaluation(
        table, metrics, metric, split.name, batch_size, split.max_length, engine.record()
    )


def score_all(
    engine: Engine,
    bank: Bank,
    examples: Sequence[Example],
    batch_size: int,
    watch: Watch | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(loss sums [N, E], correct [N, E], counts [E]) over all examples, batch by batch."""
    parts = []
    for number, batch in enumerate(batches_of(examples, batch_size)):
        parts.append(engine.score(bank, batch))
        if watch:
            watch(min((number + 1) * batch_size, len(examples)), len(examples))
    return (
        np.concatenate([part.loss_NE for part in parts], axis=1),
        np.concatenate([part.correct_NE for part in parts], axis=1),
        np.concatenate([part.count_E for part in parts]),
    )


def task_metrics(
    engine: Engine,
    bank: Bank,
    items: Sequence[Item],
    task: Task,
    batch_size: int,
    watch: Watch | None = None,
) -> dict[str, np.ndarray]:
    """The metrics of a task that need more than the loss, name to [N]."""
    if task.candidates:
        return {"choice": choice_accuracy(engine, bank, items, task.candidates, batch_size)}
    if task.judges:
        return judged(engine, bank, items, task.judges, batch_size, watch)
    return {}


def choice_accuracy(
    engine: Engine,
    bank: Bank,
    items: Sequence[Item],
    candidates: Sequence[str],
    batch_size: int,
) -> np.ndarray:
    """Share of rows whose own response has the best mean log-probability of all candidates, [N]."""
    endings = [np.array(ids) for ids in encode_completions(engine.tokenizer, candidates)]
    examples = [_ending(item.prompt_ids, ids) for item in items for ids in endings]
    loss_NX, _, count_X = score_all(engine, bank, examples, batch_size * len(candidates))
    mean_NEC = (loss_NX / count_X).reshape(len(bank.members), len(items), len(candidates))
    chosen_NE = mean_NEC.argmin(axis=2)
    right_E = np.array([candidates.index(item.reference) for item in items])
    return (chosen_NE == right_E).mean(axis=1)


def judged(
    engine: Engine,
    bank: Bank,
    items: Sequence[Item],
    judges: Mapping[str, Judge],
    batch_size: int,
    watch: Watch | None = None,
) -> dict[str, np.ndarray]:
    """Share of rows whose greedy completion each judge accepts, name to [N].

    A row is continued once, whatever the number of judges, by at most a few tokens more than the
    longest response has.
    """
    longest = max(len(item.example.ids_T) - item.prompt_length for item in items)
    decoding = Decoding(max_tokens=longest + SPARE_TOKENS)
    accepted = {name: np.zeros(len(bank.members)) for name in judges}
    for start in range(0, len(items), batch_size):
        part = items[start : start + batch_size]
        said = engine.generate(bank, [item.prompt_ids for item in part], decoding)
        for member, completions in enumerate(said):
            for item, completion in zip(part, completions, strict=True):
                text = decode_completion(engine.tokenizer, item.prompt_ids, completion.ids)
                for name, judge in judges.items():
                    accepted[name][member] += judge(item.prompt, item.reference, text)
        if watch:
            watch(start + len(part), len(items))
    return {name: count_N / len(items) for name, count_N in accepted.items()}


def _ending(prompt_ids: np.ndarray, ids: np.ndarray) -> Example:
    labels = np.concatenate([np.full(len(prompt_ids), IGNORE), ids])
    return Example("", np.concatenate([prompt_ids, ids]), labels)


def _refuse_not_finite(
    members: Sequence[str], examples: Sequence[Example], loss_NE: np.ndarray
) -> None:
    if np.isfinite(loss_NE).all():
        return
    member, example = np.argwhere(~np.isfinite(loss_NE))[0]
    count = int((~np.isfinite(loss_NE)).sum())
    raise NumericError(
        f"{members[member]} has loss {loss_NE[member, example]} on {examples[example].id} "
        f"({count} of {loss_NE.size} scores are not finite)",
        hint="`weft inspect` says whether the adapter's weights are finite; try dtype=float32",
    )
