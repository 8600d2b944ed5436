"""The training loop. One line differs between methods: `job.method.estimate(...)`.

Shapes: L lanes (adapters that train together), P parameters of one.
"""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import FrameType
from typing import Any

import numpy as np
import torch

from weft.core.errors import NumericError
from weft.methods.estimate import Estimate, Point
from weft.runs.reader import EVALUATION, STEP
from weft.runs.timing import Stopwatch
from weft.runs.writer import RunWriter
from weft.training.advance import Ended, Moved, end_rounds, move
from weft.training.evaluate import Evaluation, evaluate
from weft.training.ground import Ground
from weft.training.job import Job
from weft.training.state import State


@dataclass(frozen=True)
class Progress:
    """What a step looked like, for whoever watches."""

    step: int
    steps: int
    loss: float
    loss_name: str  # at theta, or of perturbed points only
    valid_loss: float | None
    tokens: int
    seconds: float
    ended: tuple[Ended, ...] = ()  # rounds of boosting


Watch = Callable[[Progress], None]

DIVERGED = "not finite"
"""The event of a run that cannot go on: its step is the last in whose forward it took part."""


class StopRequest:
    """Set by Ctrl-C: the loop finishes its step, saves, and returns."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Turn the first Ctrl-C into a request; a second one interrupts at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        try:
            before = signal.signal(signal.SIGINT, ask)
        except ValueError:  # not in the main thread: signals go elsewhere
            yield self
            return
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before)


@dataclass(frozen=True, eq=False)
class Part:
    """A run among those that train together: what it is, where it stands, and who writes it."""

    job: Job
    state: State
    writer: RunWriter


def fit(
    parts: Sequence[Part], stop: StopRequest, clock: Stopwatch, watch: Watch | None = None
) -> tuple[list[State], dict[int, NumericError]]:
    """Train every run from its state to its last step, or until `stop` asks.

    Runs at the same step share its forward: they must be of one base, layout and method. Returns
    the last states, and by number the runs that a loss or direction that is not finite has
    stopped; the state before that step is then their newest checkpoint. `clock` learns how long
    estimates, updates, evaluations and checkpoints took.
    """
    states = [part.state for part in parts]
    saved = [state.step for state in states]
    failed: dict[int, NumericError] = {}
    for number, part in enumerate(parts):
        if states[number].step == 0 and part.job.config.eval.every:
            try:
                with clock("evaluate"):
                    states[number], _ = _judge(part, states[number])
            except NumericError as error:
                failed[number] = error
    shared, standing = None, None
    while not stop.asked:
        live = [
            number
            for number, part in enumerate(parts)
            if number not in failed and states[number].step < part.job.steps
        ]
        if not live:
            break
        step = min(states[number].step for number in live)
        live = [number for number in live if states[number].step == step]
        together = [(number, [len(stack) for stack in states[number].stacks]) for number in live]
        if together != standing:  # somebody has committed, or is done
            shared, standing = Shared.of([(parts[n].job, states[n]) for n in live]), together
        assert shared is not None
        started = time.perf_counter()
        points = [parts[number].job.point(states[number]) for number in live]
        with clock("estimate"):
            estimates = shared.estimate(points)
        seconds = time.perf_counter() - started
        steps_taken = []
        for number, point, estimate in zip(live, points, estimates, strict=True):
            share = seconds * len(point.batches) / shared.lanes
            try:
                taken = _step(parts[number], states[number], point, estimate, share, clock)
            except NumericError as error:
                failed[number] = error
                continue
            states[number] = taken.state
            steps_taken.append(taken)
            config, done = parts[number].job.config, taken.state.step == parts[number].job.steps
            if taken.state.step % config.checkpoint_every == 0 or done:
                with clock("checkpoint"):
                    parts[number].writer.save_checkpoint(taken.state.step, taken.state.save)
                saved[number] = taken.state.step
        if watch and steps_taken:
            longest = max(part.job.steps for part in parts)
            watch(_progress(steps_taken, longest, time.perf_counter() - started))
    for number, state in enumerate(states):
        if number not in failed and state.step > saved[number]:
            parts[number].writer.save_checkpoint(state.step, state.save)
    return states, failed


@dataclass(frozen=True, eq=False)
class Shared:
    """The forwards of runs that go together: their lanes side by side."""

    job: Job  # any of them: in what matters here they are alike
    grounds: list[Ground]
    lanes: int

    @classmethod
    def of(cls, runs: Sequence[tuple[Job, State]]) -> Shared:
        """The lanes of these runs, one run after the other."""
        stacks = [stack for _, state in runs for stack in state.stacks]
        return cls(runs[0][0], runs[0][0].grounds(stacks), len(stacks))

    def estimate(self, points: Sequence[Point]) -> list[Estimate]:
        """Each run's estimate at its point."""
        whole = Point.together(points)
        found = Estimate.together(
            [
                self.job.method.estimate(
                    self.job.config.method,
                    whole.part(ground.start, ground.stop),
                    self.job.scorer(ground),
                )
                for ground in self.grounds
            ]
        )
        ends = np.cumsum([len(point.batches) for point in points]).tolist()
        return [found.part(start, stop) for start, stop in pairwise([0, *ends])]


@dataclass(frozen=True, eq=False)
class Taken:
    """A step that a run has taken, as far as anybody watching wants to know."""

    state: State
    loss_L: tuple[float, ...]
    loss_name: str
    valid_loss_L: tuple[float, ...] | None
    tokens: int
    ended: tuple[Ended, ...]


def _step(
    part: Part, state: State, point: Point, estimate: Estimate, seconds: float, clock: Stopwatch
) -> Taken:
    """Move, end rounds that are due, evaluate, and record: everything after the estimate."""
    job, writer = part.job, part.writer
    started = time.perf_counter()
    with clock("update"):
        moved = move(job.course, state, estimate.direction_LP)
        _refuse_not_finite(part, state, point, estimate, moved)
        if state.step == 0:
            writer.fingerprint("first_loss", _digest(estimate.loss_L))
        after, trigger, ended = moved.state, job.trigger, list[Ended]()
        if trigger is not None and trigger.due(after.step):
            after, ended = _end_rounds(part, after, range(len(job.lanes)), at_best=False)
    seconds += time.perf_counter() - started  # of the step alone, so that tokens/s says so
    done = after.step == job.steps
    every, valid_loss_L = job.config.eval.every, None
    if every and (after.step % every == 0 or done):
        with clock("evaluate"):
            after, valid_loss_L = _judge(part, after)
        if trigger is not None and trigger.patience is not None and not done:
            stale = [i for i, its in enumerate(after.rounds) if its.stale >= trigger.patience]
            after, ended = _end_rounds(part, after, stale, at_best=True)
    read = [job.objective.rows(batch) for batch in point.batches]
    for index, lane in enumerate(job.lanes):
        record = {
            "step": after.step,
            estimate.loss_name: estimate.loss_L[index],
            "lr": moved.lr_L[index],
            "grad_norm": moved.norm_L[index],
            "update_norm": moved.update_norm_L[index],
            "forwards": after.step * job.forwards,
            "tokens": read[index].tokens,
            "supervised_tokens": int(job.objective.counts(point.batches[index]).sum()),
            "seconds": seconds,
        }
        record |= {name: values[index] for name, values in estimate.stats.items()}
        member = {"member": lane.name} if len(job.lanes) > 1 else {}
        writer.step(record | member)
        if estimate.evidence:
            writer.evidence({"step": after.step, **estimate.evidence[index], **member})
    tokens = sum(batch.tokens for batch in read)
    return Taken(after, estimate.loss_L, estimate.loss_name, valid_loss_L, tokens, tuple(ended))


def _end_rounds(
    part: Part, state: State, lanes: Sequence[int], *, at_best: bool
) -> tuple[State, list[Ended]]:
    """End the rounds of these lanes, and record how."""
    state, ended = end_rounds(part.job.course, state, lanes, at_best=at_best)
    for each in ended:
        part.writer.event(step=state.step, **each.event())
    return state, ended


def _progress(taken: Sequence[Taken], steps: int, seconds: float) -> Progress:
    losses = [loss for each in taken for loss in each.loss_L]
    valid = [loss for each in taken for loss in each.valid_loss_L or ()]
    return Progress(
        max(each.state.step for each in taken),
        steps,
        sum(losses) / len(losses),
        taken[0].loss_name,
        sum(valid) / len(valid) if valid else None,
        sum(each.tokens for each in taken),
        seconds,
        tuple(ended for each in taken for ended in each.ended),
    )


def _digest(loss_L: tuple[float, ...]) -> str:
    """SHA-256 of losses, to the last bit."""
    return hashlib.sha256(" ".join(loss.hex() for loss in loss_L).encode()).hexdigest()


def _judge(part: Part, state: State) -> tuple[State, tuple[float, ...]]:
    """Score the lanes on the validation split; the best adapter of each is part of the state."""
    job, writer = part.job, part.writer
    try:
        evaluation = validate(job, state.stacks, state.theta_LP, rows=job.config.eval.rows)
    except NumericError as error:
        writer.save_checkpoint(state.step, state.save)
        problem = f"evaluation after step {state.step}: {error.problem}"
        writer.event(DIVERGED, step=state.step, problem=problem)
        raise NumericError(problem, hint=_advice(writer, "that evaluation")) from None
    writer.table(f"{EVALUATION}{state.step}", evaluation.table)
    writer.table(f"{job.objective.hits}{STEP}{state.step}", evaluation.hits)
    loss_L = tuple(evaluation.table.means().tolist())
    plateau = job.config.boost.plateau if job.config.boost is not None else None
    return state.judged(loss_L, plateau.min_delta if plateau is not None else 0.0), loss_L


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
    part: Part, state: State, point: Point, estimate: Estimate, moved: Moved
) -> None:
    """Stop before a step whose loss, direction or result is not a number; `state` is kept."""
    finite_L = moved.state.theta_LP.isfinite().all(dim=1).tolist()
    writer, lanes = part.writer, part.job.lanes
    sizes = zip(moved.norm_L, moved.update_norm_L, finite_L, strict=True)
    for lane, batch, loss, (norm, size, finite) in zip(
        lanes, point.batches, estimate.loss_L, sizes, strict=True
    ):
        finite = finite and math.isfinite(size)
        if math.isfinite(loss) and math.isfinite(norm) and finite:
            continue
        writer.save_checkpoint(state.step, state.save)
        after = "" if finite else ", and the adapter would not be finite after it"
        problem = (
            f"step {state.step + 1}: loss {loss}, gradient norm {norm}{after} ({lane.name}, lr "
            f"{lane.lr:g}) on examples {', '.join(batch.ids)}"
        )
        facts: dict[str, Any] = {"member": lane.name, "loss": repr(loss), "grad_norm": repr(norm)}
        facts |= {"examples": list(batch.ids), "problem": problem}
        writer.event(DIVERGED, step=state.step + 1, **facts)
        raise NumericError(problem, hint=_advice(writer, "that step"))


def _advice(writer: RunWriter, what: str) -> str:
    return (
        f"the state before {what} is kept in {writer.layout.checkpoints}; "
        "try a smaller optimiser.lr, or dtype=float32"
    )
