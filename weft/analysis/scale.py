"""Which of the scales that an adapter may have been trained at is the one: its rows tell.

Every candidate is a member of one bank, scored in one pass over the same rows. The layer itself
stays free of torch: forwards are those of `training`, and its conversion does not know intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.analysis.statistics import Interval, paired_bootstrap
from weft.core.errors import CheckFailed, InputError
from weft.core.keys import Key
from weft.core.table import ScoreTable

if TYPE_CHECKING:
    from weft.data.split import Split
    from weft.formats.certificate import Certificate
    from weft.formats.loaded import LoadedAdapter, ScaleCandidate
    from weft.training.convert import Conversion, Scale
    from weft.training.evaluate import Watch

BASE = "base"
TRIAL_ROWS = 8
"""Rows of the data on which the logits of source and result are compared, too."""


@dataclass(frozen=True)
class ScaleScore:
    """What a candidate scores, and how far that is from the best one."""

    scale: float
    reason: str
    loss: float
    above_best: Interval | None  # loss minus that of the best; None for the best


@dataclass(frozen=True)
class ScaleChoice:
    """The candidates, the best first, and the rows that they were scored on."""

    scores: tuple[ScaleScore, ...]
    base_loss: float
    data: str
    examples: int
    supervised_tokens: int

    @property
    def best(self) -> ScaleScore:
        """The candidate of the lowest loss."""
        return self.scores[0]

    @property
    def helps(self) -> bool:
        """Whether the adapter does better than the base alone, at the best scale at least.

        Where it does not, the lowest loss is only that of the scale that does the least.
        """
        return self.best.loss < self.base_loss

    @property
    def decided(self) -> bool:
        """Whether the adapter helps, and the rows tell the best from every other candidate."""
        others = [score.above_best for score in self.scores[1:]]
        return self.helps and all(o is not None and o.excludes_zero for o in others)

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON; an interval without ends (of one row) has none."""
        return {
            "data": self.data,
            "examples": self.examples,
            "supervised_tokens": self.supervised_tokens,
            "base_loss": self.base_loss,
            "candidates": [
                {
                    "scale": score.scale,
                    "reason": score.reason,
                    "loss": score.loss,
                    "above_best": vars(score.above_best) if score.above_best else None,
                }
                for score in self.scores
            ],
        }


def import_adapter(
    source: str,
    out: Path,
    *,
    insist: str | None = None,
    base: str | None = None,
    scale: Scale = None,
    task: str | None = None,
    data: Path | None = None,
    watch: Watch | None = None,
) -> Certificate:
    """Turn an adapter in any format into Weft's own, PEFT's; see `weft.import_adapter`."""
    from weft.training.convert import carry_out, prepare

    job = prepare(source, "peft", out, base=base, insist=insist, scale=scale)
    split = None if task is None and data is None else _rows(job, task, data)
    read, choice = _read(job, split, str(data or task), watch)
    record = choice.record() if choice else None
    rows = split.examples[:TRIAL_ROWS] if split else ()
    return carry_out(job, read, scale_choice=record, rows=rows)


def choose(
    table: ScoreTable, candidates: Sequence[ScaleCandidate], members: Sequence[str], data: str
) -> ScaleChoice:
    """Put candidates, scored as `members` beside `BASE`, in order, with paired intervals."""
    rows = {member: table.row(member) for member in table.members}
    order = sorted(zip(members, candidates, strict=True), key=lambda pair: rows[pair[0]].mean)
    best = rows[order[0][0]]
    key = Key.of(0).fold("scale")
    return ScaleChoice(
        scores=tuple(
            ScaleScore(
                candidate.scale,
                candidate.reason,
                rows[member].mean,
                None
                if rows[member] is best
                else paired_bootstrap(
                    best.sums, best.counts, rows[member].sums, rows[member].counts, key
                ),
            )
            for member, candidate in order
        ),
        base_loss=rows[BASE].mean,
        data=data,
        examples=len(best.ids),
        supervised_tokens=int(best.counts.sum()),
    )


def _read(
    job: Conversion, split: Split | None, data: str, watch: Watch | None
) -> tuple[LoadedAdapter, ScaleChoice | None]:
    """The adapter, at a scale that was chosen where its files leave it open and that is wanted."""
    from dataclasses import replace

    from weft.formats.loaded import UndecidedScale

    try:
        read = job.read()
    except UndecidedScale as undecided:
        if job.scale != "auto":
            raise
        if split is None:
            raise InputError(
                f"--scale auto needs rows to score the scales of {job.path} on",
                hint="give --data FILE with rows like those that the adapter was trained on, "
                "or --task NAME",
            ) from None
        choice = _score(job, undecided.candidates, split, data, watch)
        if not choice.decided:
            raise CheckFailed(*_undecided(job, choice)) from None
        words = f"the lowest loss of {len(choice.scores)} scales on {choice.examples:,} rows"
        read = job.read_at(choice.best.scale)
        return replace(read, scale_from=f"{words} of {data}"), choice
    if job.scale != "auto":
        return read, None
    said = "--scale auto: the files determine the scale, and nothing was scored"
    return replace(read, notes=(*read.notes, said)), None


def _score(
    job: Conversion,
    candidates: Sequence[ScaleCandidate],
    split: Split,
    data: str,
    watch: Watch | None,
) -> ScaleChoice:
    from weft.engines.local import LocalEngine
    from weft.model.bank import Bank
    from weft.training.evaluate import evaluate

    names = [f"scale {candidate.scale:g}: {candidate.reason}" for candidate in candidates]
    adapters = [job.read_at(candidate.scale).adapter for candidate in candidates]
    bank = Bank.of({BASE: None, **dict(zip(names, adapters, strict=True))})
    scored = evaluate(
        LocalEngine(job.base), bank, split, batch_size=16, task_metric=False, watch=watch
    )
    return choose(scored.table, candidates, names, data)


def _rows(job: Conversion, task: str | None, data: Path | None) -> Split:
    from weft.data.dataset import load_splits
    from weft.training.refs import data_for

    wanted = data_for([job.place], task=task, path=data)
    return load_splits(wanted, job.base.tokenizer, ("valid",), job.base.context)["valid"]


def _undecided(job: Conversion, choice: ScaleChoice) -> tuple[str, str]:
    lines = [
        f"  {score.scale:g}: loss {score.loss:.4f}  ({score.reason})" for score in choice.scores
    ]
    found = "\n".join([*lines, f"  the base alone: loss {choice.base_loss:.4f}"])
    why = "the 95 % interval of a difference to the best contains zero"
    if not choice.helps:
        why = "the adapter does no better than the base alone at any of them"
    return (
        f"the {choice.examples:,} rows of {choice.data} do not tell the scales of {job.path} "
        f"apart: {why}\n{found}",
        "give more rows, or rows of the task that it was trained on, or --scale NUMBER",
    )
