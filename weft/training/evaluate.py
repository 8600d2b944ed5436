"""Scoring a split: loss, perplexity, and the task's own metric, for every member of a bank.

Shapes: N members, E examples, C candidates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from weft.core.batch import Example, batches_of
from weft.core.errors import NumericError
from weft.core.table import ScoreTable
from weft.data.rewards import REWARDS, grader_for
from weft.data.split import Item, Split
from weft.data.task import Task
from weft.data.templates import Judge
from weft.data.tokens import decode_completion
from weft.engines.engine import Engine
from weft.engines.reward import LENGTH, Reward
from weft.methods.estimate import Graded, joined
from weft.model.bank import Bank
from weft.model.config import RewardConfig
from weft.model.decoding import Decoding, copy_numbers
from weft.model.objectives import TOKENS, Objective, choosing

Watch = Callable[[int, int], None]
"""Called with rows done and rows in all; twice through all rows where responses are generated."""

STANDARD_ERROR = "standard_error"
"""Of a mean reward, over the rows."""

SPARE_TOKENS = 8
"""How many tokens longer than the longest response a generated one may be."""


@dataclass(frozen=True)
class Said:
    """What a member said on every row."""

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What every member of a bank scored on one split."""

    table: ScoreTable
    hits: ScoreTable  # what `objective.hits` counts (or the rewards), over the same counts
    metrics: dict[str, np.ndarray]  # name to [N]
    metric: str  # the main one
    objective: Objective | Reward
    split: str
    batch_size: int
    max_length: int
    engine: dict[str, str]  # what computed it
    parts: dict[str, ScoreTable] = field(default_factory=dict)  # of what rewards are made
    said: tuple[Said, ...] = ()  # graded completions of each member
    failures: Mapping[str, int] = field(default_factory=dict)  # why some could not be graded

    @classmethod
    def together(cls, parts: Sequence[Evaluation]) -> Evaluation:
        """Members that were scored apart on the same rows."""
        metrics = {
            name: np.concatenate([part.metrics[name] for part in parts])
            for name in parts[0].metrics
        }
        table = ScoreTable.stack([part.table for part in parts])
        hits = ScoreTable.stack([part.hits for part in parts])
        failures: Counter[str] = Counter()
        for part in parts:
            failures.update(part.failures)
        said = tuple(each for part in parts for each in part.said)
        made_of = {
            name: ScoreTable.stack([part.parts[name] for part in parts]) for name in parts[0].parts
        }
        return replace(
            parts[0],
            table=table,
            hits=hits,
            metrics=metrics,
            parts=made_of,
            said=said,
            failures=dict(failures),
        )

    @property
    def notices(self) -> list[str]:
        """Of whom nothing is known, and why."""
        return [
            f"{self.split}: not one completion of {member} could be graded: "
            f"{', '.join(self.failures)}"
            for member, count_E in zip(self.table.members, self.table.counts, strict=True)
            if not count_E.any()
        ]

    def record(self, member: str) -> dict[str, Any]:
        """One member's line for `eval.json`.

        A choice between candidates is one prediction a row: it has no perplexity of tokens. A
        mean reward has a standard error over the rows.
        """
        row = self.table.row(member)
        rewards: dict[str, Any] = {}
        if isinstance(self.objective, Reward):
            rewards = {
                STANDARD_ERROR: _known(row.standard_error),
                "graded": int(row.counts.sum()),
                "failures": dict(self.failures),
                "grader": self.objective.grader.record(),
            }
        index = self.table.members.index(member)
        of_tokens = self.objective.hits == "token_accuracy"
        return {
            "eval_loss": row.mean if row.counts.any() else None,  # nothing could be graded
            "objective": self.objective.name,
            "perplexity": math.exp(row.mean) if of_tokens and row.mean < 700 else None,
            "num_batches": math.ceil(len(row.ids) / self.batch_size),
            "num_examples": len(row.ids),
            "supervised_tokens": int(row.counts.sum()),
            **rewards,
            "split": self.split,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "engine": self.engine,
            "metric": self.metric,
            "metrics": list(self.metrics),
            **{name: _known(values[index]) for name, values in self.metrics.items()},
        }


def evaluate(
    engine: Engine,
    bank: Bank,
    split: Split,
    *,
    batch_size: int,
    rows: int | None = None,
    task_metric: bool = True,
    objective: Objective | Reward = TOKENS,
    watch: Watch | None = None,
) -> Evaluation:
    """Score every member on the first `rows` rows of a split (default: all).

    The loss is the sum of the objective's losses over the sum of its counts: by default, of all
    supervised tokens. A loss that is not finite is a `NumericError` that names the member and the
    examples. Of a reward the loss is minus the mean over the completions that could be graded; NaN
    where none could.
    """
    examples = split.examples[:rows]
    if isinstance(objective, Reward):
        return _rewarded(engine, bank, split, examples, batch_size, objective, watch)
    loss_NE, correct_NE, count_E = score_all(engine, bank, examples, batch_size, objective, watch)
    _refuse_not_finite(bank.members, examples, loss_NE)
    count_NE = np.broadcast_to(count_E, loss_NE.shape)
    ids = tuple(example.id for example in examples)
    table = ScoreTable(bank.members, ids, loss_NE, count_NE)
    hits = ScoreTable(bank.members, ids, correct_NE, count_NE)
    metrics: dict[str, np.ndarray] = {objective.hits: hits.means()}
    if task_metric and split.task.metric not in metrics:
        metrics |= task_metrics(engine, bank, split.items[:rows], split.task, batch_size, watch)
    metric = split.task.metric if split.task.metric in metrics else objective.hits
    return Evaluation(
        table,
        hits,
        metrics,
        metric,
        objective,
        split.name,
        batch_size,
        split.max_length,
        engine.record(),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _rewarded(
    engine: Engine,
    bank: Bank,
    split: Split,
    examples: Sequence[Example],
    batch_size: int,
    objective: Reward,
    watch: Watch | None,
) -> Evaluation:
    """Every member's completions, graded."""
    parts = _grades(engine, bank, examples, batch_size, objective, watch)
    reward_NE = np.concatenate([part.reward_NE for part in parts], axis=1)
    failures: Counter[str] = Counter()
    for part in parts:
        failures.update(part.failures)
    _refuse_silent(bank.members, joined(parts, 1)[LENGTH])
    ids = tuple(example.id for example in examples)
    hits = _table(bank.members, ids, reward_NE)
    tables = {name: _table(bank.members, ids, of_NE) for name, of_NE in joined(parts, 1).items()}
    return Evaluation(
        _table(bank.members, ids, -reward_NE),
        hits,
        {objective.hits: hits.means()} | {name: its.means() for name, its in tables.items()},
        objective.hits,
        objective,
        split.name,
        batch_size,
        split.max_length,
        engine.record(),
        tables,
        tuple(
            Said(
                tuple(text for part in parts for text in part.texts[n]),
                tuple(ids for part in parts for ids in part.ids[n]),
            )
            for n in range(len(bank.members))
        ),
        dict(failures),
    )


def _refuse_silent(members: Sequence[str], length_NE: np.ndarray) -> None:
    """Whoever says nothing at all computes no numbers; what a grader cannot do is another thing."""
    for member, length_E in zip(members, length_NE, strict=True):
        if np.isnan(length_E).all():
            raise NumericError(f"{member} has logits that are not finite on every prompt")


def _grades(
    engine: Engine,
    bank: Bank,
    examples: Sequence[Example],
    batch_size: int,
    objective: Reward,
    watch: Watch | None,
) -> list[Graded]:
    """Batch by batch."""
    parts = []
    prompts = [each.goal.prompt_T for each in examples if each.goal is not None]
    copies = copy_numbers(prompts)
    for number, batch in enumerate(batches_of(examples, batch_size)):
        here = copies[number * batch_size :][:batch_size]
        parts.append(objective.grade(engine, bank, batch, copies=here))
        if watch:
            watch(min((number + 1) * batch_size, len(examples)), len(examples))
    return parts


def _table(members: tuple[str, ...], ids: tuple[str, ...], value_NE: np.ndarray) -> ScoreTable:
    """One value an example; NaN is not counted."""
    known_NE = ~np.isnan(value_NE)
    return ScoreTable(members, ids, np.where(known_NE, value_NE, 0.0), known_NE.astype(np.int64))


def score_all(
    engine: Engine,
    bank: Bank,
    examples: Sequence[Example],
    batch_size: int,
    objective: Objective = TOKENS,
    watch: Watch | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(loss sums [N, E], hits [N, E], counts [E]) over all examples, batch by batch."""
    parts = []
    for number, batch in enumerate(batches_of(examples, batch_size)):
        parts.append(engine.score(bank, batch, objective))
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
        examples = [item.example for item in items]
        _, hits_NE, _ = score_all(engine, bank, examples, batch_size, choosing(examples))
        return {"choice": hits_NE.mean(axis=1)}
    if task.judges:
        return judged(engine, bank, items, task.judges, batch_size, watch)
    if task.format.name in REWARDS:
        return _rewards(engine, bank, items, task, batch_size, watch)
    return {}


def _rewards(
    engine: Engine,
    bank: Bank,
    items: Sequence[Item],
    task: Task,
    batch_size: int,
    watch: Watch | None,
) -> dict[str, np.ndarray]:
    """What greedy completions, a few tokens longer than the longest response, are rewarded."""
    grader = grader_for(RewardConfig(), task)
    objective = Reward(grader, Decoding(max_tokens=_longest(items) + SPARE_TOKENS))
    try:
        parts = _grades(
            engine, bank, [item.example for item in items], batch_size, objective, watch
        )
    finally:
        grader.close()
    tables = {objective.hits: np.concatenate([part.reward_NE for part in parts], axis=1)}
    ids = tuple(item.example.id for item in items)
    return {
        name: _table(bank.members, ids, value_NE).means()
        for name, value_NE in (tables | joined(parts, 1)).items()
    }


def _longest(items: Sequence[Item]) -> int:
    """Tokens of the longest response."""
    return max(len(item.example.ids_T) - item.prompt_length for item in items)


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
    decoding = Decoding(max_tokens=_longest(items) + SPARE_TOKENS)
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
