"""Two subjects on the same data: losses, divergences, and texts side by side.

Differences are B minus A, with a paired bootstrap over examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.analysis.statistics import Interval, bootstrap, paired_bootstrap
from weft.core.errors import InputError
from weft.core.keys import Key
from weft.core.table import ScoreRow

if TYPE_CHECKING:
    from weft.data.split import Item
    from weft.model.config import DType
    from weft.training.evaluate import Evaluation, Watch


@dataclass(frozen=True)
class Sample:
    """One prompt with its reference, and what each of the two says: greedily, or to be graded."""

    id: str
    prompt: str
    reference: str
    a: str
    b: str
    reward_a: float | None = None
    reward_b: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What differs between `a` and `b`, and by how much."""

    a: str
    b: str
    base: str
    split: str
    examples: int
    supervised_tokens: int
    objective: str  # whose loss it is: the run's own
    loss: Mapping[str, float]  # of a reward: minus its mean
    perplexity: Mapping[str, float] | None  # None where the loss is not one of tokens
    metrics: Mapping[str, Mapping[str, float]]  # metric to member to value
    loss_difference: Interval
    perplexity_difference: Interval | None
    divergence: Mapping[str, Interval]  # mean a supervised token, or token that `b` said
    largest: Mapping[str, float]  # at any one position
    samples: tuple[Sample, ...]
    notices: tuple[str, ...]  # what was cut, skipped or guessed, and what differs

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain["samples"] = [vars(sample) for sample in self.samples]
        plain["loss_difference"] = vars(self.loss_difference)
        if self.perplexity_difference is not None:
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

    Both are scored on the same rows of a split, the loss being that of the objective of the run
    behind `a`, or else `b`; divergences are over the supervised tokens. Texts are generated
    greedily for the first `prompts` rows. Of a reward the texts are those that were graded, and
    divergences are over the tokens that `b` said. Raises `InputError` where a reference means
    several adapters.
    """
    from weft.engines.reward import Reward
    from weft.training.completions import said_examples
    from weft.training.contrast import contrast
    from weft.training.evaluate import evaluate
    from weft.training.objective import judging
    from weft.training.refs import data_for, differences, load_split, open_subject, settled_by

    subject = open_subject([a, b], base=base, dtype=dtype)
    if len(subject.adapters) != 2:
        raise InputError(
            f"{a} and {b} together mean {len(subject.adapters)} adapters: "
            f"{', '.join(subject.adapters)}",
            hint="name one member of a run, as RUN/members/NAME",
        )
    run = next((place.config for place in subject.places if place.config), None)
    wanted = data_for(subject.places, task=task, path=data)
    rows_of = load_split(subject, wanted, split, run.objective if run else None)
    bank, engine = subject.bank, subject.local
    name_a, name_b = bank.members
    with judging(run, rows_of) as (objective, more):
        graded = isinstance(objective, Reward)
        scores = evaluate(
            engine,
            bank,
            rows_of,
            batch_size=batch_size,
            rows=rows,
            objective=objective,
            watch=watch if graded else None,
        )
    examples = rows_of.examples[:rows]
    if graded:
        examples = said_examples(rows_of.items[:rows], scores.said[1])
        if not examples:
            raise InputError(
                f"{name_b} said nothing on {len(scores.table.ids)} rows: there are no tokens to "
                "compare distributions at",
                hint=f"`weft eval {b}` shows its reward",
            )
    apart = contrast(engine, bank, examples, batch_size=batch_size, watch=watch)
    row_a, row_b = scores.table.row(name_a), scores.table.row(name_b)
    key, of_tokens = Key.of(0).fold("compare"), objective.hits == "token_accuracy"
    loss_difference = _difference(row_a, row_b, key)
    settled = settled_by(base=base, dtype=dtype, task=task, path=data)
    differing = differences(subject.places, settled)
    skipped: tuple[str, ...] = ()
    if graded:
        samples = _graded_samples(scores, rows_of.items[:rows][:prompts])
    else:
        items, skipped = _continuable(rows_of.items[:prompts], engine.base.context)
        samples = _samples(engine, bank, items, max_tokens)
    return Comparison(
        a=name_a,
        b=name_b,
        base=engine.base.ref,
        split=split,
        examples=len(row_a.ids),
        supervised_tokens=int(apart.table.counts[0].sum()),
        objective=objective.name,
        loss={name_a: row_a.mean, name_b: row_b.mean},
        perplexity={row.member: perplexity(row.mean) for row in (row_a, row_b)}
        if of_tokens
        else None,
        metrics={
            metric: dict(zip(bank.members, map(float, values_N), strict=True))
            for metric, values_N in scores.metrics.items()
        },
        loss_difference=loss_difference,
        perplexity_difference=perplexity_difference(row_a, row_b, key, loss_difference)
        if of_tokens
        else None,
        divergence={
            name: bootstrap(row.sums, row.counts, key)
            for name, row in ((n, apart.table.row(n)) for n in apart.table.members)
        },
        largest=apart.largest,
        samples=samples,
        notices=(*differing, *subject.notices, *rows_of.notices, *more, *skipped),
    )


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that is beyond any float."""
    return math.exp(loss) if loss < 709 else math.inf


def _difference(a: ScoreRow, b: ScoreRow, key: Key, of: Any = np.asarray) -> Interval:
    return paired_bootstrap(a.sums, a.counts, b.sums, b.counts, key, of=of)


def perplexity_difference(a: ScoreRow, b: ScoreRow, key: Key, of_loss: Interval) -> Interval:
    """exp(loss b) - exp(loss a); beyond any float it is infinite, with the sign of the losses'."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = _difference(a, b, key, np.exp)
    return Interval(
        _signed(found.low, of_loss.low),
        _signed(found.high, of_loss.high),
        _signed(found.estimate, of_loss.estimate),
    )


def _signed(value: float, of_loss: float) -> float:
    """`value`, or where it is inf - inf the infinity (or 0) that the loss difference points to."""
    if not math.isnan(value) or math.isnan(of_loss):
        return value
    return math.copysign(math.inf, of_loss) if of_loss else 0.0


def _continuable(
    items: Sequence[Item], context: int | None
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """The items whose prompts a text can go on from, and what to say of the others."""
    empty = [item for item in items if item.prompt_length == 0]
    long = [item for item in items if context is not None and item.prompt_length >= context]
    notices = [
        f"{len(skipped)} of the first {len(items)} prompts are not continued: {why}"
        for skipped, why in (
            (empty, "they are empty (the rows are plain text, and the tokenizer adds no BOS)"),
            (long, f"they leave no room in the context of {context} tokens"),
        )
        if skipped
    ]
    return tuple(i for i in items if i not in empty and i not in long), tuple(notices)


def _graded_samples(scores: Evaluation, items: Sequence[Item]) -> tuple[Sample, ...]:
    """The completions that were graded, with their rewards."""
    said_a, said_b = scores.said
    rewards_NE = np.where(scores.hits.counts > 0, scores.hits.sums, np.nan)
    reward_NE = [[None if np.isnan(x) else float(x) for x in row_E] for row_E in rewards_NE]
    return tuple(
        Sample(item.example.id, item.prompt, item.reference, *texts, *rewards)
        for item, texts, rewards in zip(
            items,
            zip(said_a.texts, said_b.texts, strict=True),
            zip(*reward_NE, strict=True),
            strict=False,  # all were graded, and the first are shown
        )
    )


def _samples(engine: Any, bank: Any, items: Sequence[Item], max_tokens: int) -> tuple[Sample, ...]:
    if not items:
        return ()
    from weft.data.tokens import decode_completion
    from weft.model.decoding import Decoding

    prompts = [item.prompt_ids for item in items]
    said_a, said_b = engine.generate(bank, prompts, Decoding(max_tokens=max_tokens))
    return tuple(
        Sample(
            item.example.id,
            item.prompt,
            item.reference,
            decode_completion(engine.tokenizer, item.prompt_ids, a.ids),
            decode_completion(engine.tokenizer, item.prompt_ids, b.ids),
        )
        for item, a, b in zip(items, said_a, said_b, strict=True)
    )
