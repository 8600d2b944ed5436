"""One step of one run, all but its estimate: move, end rounds, evaluate, record.

Shapes: L lanes (adapters that train together), P parameters of one.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from weft.core.errors import NumericError
from weft.core.files import Record
from weft.engines.reward import Reward
from weft.methods.estimate import Estimate, Point
from weft.runs.reader import COMPLETIONS_BEFORE, EVALUATION, STEP
from weft.runs.writer import RunWriter
from weft.training import trail
from weft.training.advance import Ended, Moved, end_rounds, move
from weft.training.completions import completions
from weft.training.evaluate import Evaluation, evaluate
from weft.training.job import Job
from weft.training.state import State
from weft.training.watching import Watched

DIVERGED = "not finite"
"""The event of a run that cannot go on: its step is the last in whose forward it took part."""

NOT_GRADED = "not graded"
"""How the notice of a run's first failed grades begins."""


@dataclass(frozen=True, eq=False)
class Part:
    """A run among those that train together: what it is, where it stands, and who writes it."""

    job: Job
    state: State
    writer: RunWriter


@dataclass(frozen=True, eq=False)
class Taken:
    """A step that a run has taken, as far as anybody watching wants to know."""

    state: State
    loss_L: tuple[float, ...]
    loss_name: str
    valid_loss_L: tuple[float, ...] | None
    tokens: int
    ended: tuple[Ended, ...]
    stats: Mapping[str, tuple[float, ...]]  # further numbers, one a lane
    is_reward: bool  # then losses are minus rewards


class Diverged(Exception):
    """A step cannot be taken or judged: a number is not finite. `facts` are for its event."""

    def __init__(self, step: int, problem: str, **facts: Any) -> None:
        """`step` is the one that was being taken."""
        super().__init__(problem)
        self.facts = {"step": step, **facts, "problem": problem}


def take(
    part: Part,
    state: State,
    point: Point,
    estimate: Estimate,
    seconds: float,
    watched: Watched,
) -> Taken:
    """Move, end rounds that are due, evaluate, and record: everything after the estimate.

    `watched` is what was seen of the estimate's forwards.
    """
    job, writer = part.job, part.writer
    started = time.perf_counter()
    moved = move(job.course, state, estimate.direction_LP)
    _refuse_not_finite(job, state, point, estimate, moved)
    if state.step == 0:
        writer.fingerprint("first_loss", _digest(estimate.loss_L))
    after, trigger, ended = moved.state, job.trigger, list[Ended]()
    if trigger is not None and trigger.due(after.step):
        after, ended = _end_rounds(part, after, range(len(job.lanes)), at_best=False)
    seconds += time.perf_counter() - started  # of the step alone, so that tokens/s says so
    done = after.step == job.steps
    every, valid_loss_L = job.config.eval.every, None
    if every and (after.step % every == 0 or done):
        with job.clock("validation"):
            after, valid_loss_L = judge(part, after)
            if trigger is not None and trigger.patience is not None and not done:
                stale = [i for i, its in enumerate(after.rounds) if its.stale >= trigger.patience]
                after, ended = _end_rounds(part, after, stale, at_best=True)
                after = _with_known_starts(job, after)
    with job.clock("records"):
        tokens = _record(part, after.step, point, estimate, moved, seconds)
        trail.follow(job, writer, point, estimate.direction_LP, moved.state, watched)
    return Taken(
        after,
        estimate.loss_L,
        estimate.loss_name,
        valid_loss_L,
        tokens,
        tuple(ended),
        estimate.stats,
        isinstance(job.objective, Reward),
    )


def _record(
    part: Part, step: int, point: Point, estimate: Estimate, moved: Moved, seconds: float
) -> int:
    """Write each lane's line of a step, and what replays it; returns how many tokens were read."""
    job, writer = part.job, part.writer
    read = [job.objective.rows(batch) for batch in point.batches]
    for index, lane in enumerate(job.lanes):
        record: Record = {
            "step": step,
            estimate.loss_name: estimate.loss_L[index],
            "lr": moved.lr_L[index],
            "grad_norm": moved.norm_L[index],
            "update_norm": moved.update_norm_L[index],
            **({"update_noise": moved.update_noise_L[index]} if moved.update_noise_L else {}),
            "forwards": step * job.forwards,
            "tokens": read[index].tokens,
            "supervised_tokens": int(job.objective.counts(point.batches[index]).sum()),
            "seconds": seconds,
        }
        record |= {name: values[index] for name, values in estimate.stats.items()}
        record = {
            n: None if isinstance(x, float) and math.isnan(x) else x for n, x in record.items()
        }
        record |= trail.prints(read[index], moved.state.theta_LP[index])
        member = {"member": lane.name} if len(job.lanes) > 1 else {}
        writer.step(record | member)
        if estimate.evidence:
            writer.evidence({"step": step, **estimate.evidence[index], **member})
            _tell_of_failure(part, step, estimate.evidence[index].get("failures", {}))
    return sum(batch.tokens for batch in read)


def _tell_of_failure(part: Part, step: int, failures: Mapping[str, int]) -> None:
    """Why something could not be graded, the first time in a run that something could not."""
    told = any(notice.startswith(NOT_GRADED) for notice in part.writer.manifest.notices)
    if failures and not told:
        why, count = next(iter(failures.items()))
        part.job.news(f"{NOT_GRADED} at step {step}: {count:,} x {why} (evidence.jsonl has all)")


def _end_rounds(
    part: Part, state: State, lanes: Sequence[int], *, at_best: bool
) -> tuple[State, list[Ended]]:
    """End the rounds of these lanes, and record how."""
    state, ended = end_rounds(part.job.course, state, lanes, at_best=at_best)
    for each in ended:
        part.writer.event(step=state.step, **each.event())
    return state, ended


def judge(part: Part, state: State) -> tuple[State, tuple[float, ...]]:
    """Score the lanes on the validation split; the best adapter of each is part of the state."""
    job, writer = part.job, part.writer
    evaluation = _evaluated(job, state)
    writer.table(f"{EVALUATION}{state.step}", evaluation.table)
    writer.table(f"{job.objective.hits}{STEP}{state.step}", evaluation.hits)
    for name, its in evaluation.parts.items():
        writer.table(f"{name}{STEP}{state.step}", its)
    if state.step == 0 and isinstance(job.objective, Reward):
        writer.result(COMPLETIONS_BEFORE, completions(evaluation, job.splits["valid"]))
    for notice in evaluation.notices:
        writer.notice(notice)
    loss_L = tuple(evaluation.table.means().tolist())
    plateau = job.config.boost.plateau if job.config.boost is not None else None
    return state.judged(loss_L, plateau.min_delta if plateau is not None else 0.0), loss_L


def _with_known_starts(job: Job, state: State) -> State:
    """With the loss from which a round starts measured, where a shrunken commit has changed it."""
    known = [math.isfinite(its.best_loss) for its in state.rounds]
    if all(known):
        return state
    loss_L = _evaluated(job, state).table.means().tolist()
    lanes = zip(state.rounds, known, loss_L, strict=True)
    rounds = (its if is_known else replace(its, best_loss=x) for its, is_known, x in lanes)
    return replace(state, rounds=tuple(rounds))


def _evaluated(job: Job, state: State) -> Evaluation:
    try:
        return validate(job, state.stacks, state.theta_LP, rows=job.config.eval.rows)
    except NumericError as error:
        problem = f"evaluation after step {state.step}: {error.problem}"
        raise Diverged(state.step, problem) from None


def validate(
    job: Job,
    stacks: Sequence[torch.Tensor],
    theta_LP: torch.Tensor,
    *,
    rows: int | None = None,
    task_metric: bool = False,
) -> Evaluation:
    """The lanes, on their commits, on the first `rows` validation rows (default: all)."""
    return Evaluation.together(
        [
            evaluate(
                job.engine(ground),
                ground.bank(job.names, job.layout, theta_LP),
                job.splits["valid"],
                objective=job.objective,
                batch_size=job.config.eval.batch_size,
                rows=rows,
                task_metric=task_metric,
            )
            for ground in job.grounds(stacks)
        ]
    )


def _refuse_not_finite(
    job: Job, state: State, point: Point, estimate: Estimate, moved: Moved
) -> None:
    """Stop before a step whose loss, direction or result is not a number.

    Of a reward: where the centre got none, others may have.
    """
    is_reward = isinstance(job.objective, Reward)
    finite_L = moved.state.theta_LP.isfinite().all(dim=1).tolist()
    sizes = zip(moved.norm_L, moved.update_norm_L, finite_L, strict=True)
    for lane, batch, loss, (norm, size, finite) in zip(
        job.lanes, point.batches, estimate.loss_L, sizes, strict=True
    ):
        finite = finite and math.isfinite(size)
        if (math.isfinite(loss) or is_reward) and math.isfinite(norm) and finite:
            continue
        after = "" if finite else ", and the adapter would not be finite after it"
        raise Diverged(
            state.step + 1,
            f"step {state.step + 1}: loss {loss}, gradient norm {norm}{after} ({lane.name}, lr "
            f"{lane.lr:g}) on examples {', '.join(batch.ids)}",
            member=lane.name,
            loss=repr(loss),
            grad_norm=repr(norm),
            examples=list(batch.ids),
        )


def _digest(loss_L: tuple[float, ...]) -> str:
    """SHA-256 of losses, to the last bit."""
    return hashlib.sha256(" ".join(loss.hex() for loss in loss_L).encode()).hexdigest()
