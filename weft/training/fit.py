"""The training loop. One line differs between methods: `job.method(...)`.

Shapes: L lanes (adapters that train together), P parameters of one.
"""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

import torch

from weft.core.batch import Batch
from weft.core.errors import NumericError
from weft.methods.optimise import OPTIMISERS, clip, rate
from weft.runs.timing import Stopwatch
from weft.runs.writer import RunWriter
from weft.training.evaluate import Evaluation, evaluate
from weft.training.job import Job
from weft.training.state import State


@dataclass(frozen=True)
class Progress:
    """What a step looked like, for whoever watches."""

    step: int
    steps: int
    loss: float
    valid_loss: float | None
    tokens: int
    seconds: float


Watch = Callable[[Progress], None]


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


def fit(
    job: Job,
    state: State,
    writer: RunWriter,
    stop: StopRequest,
    clock: Stopwatch,
    watch: Watch | None = None,
) -> State:
    """Train from `state` to the job's last step, or until `stop` asks; returns the last state.

    `clock` learns how long estimates, updates, evaluations and checkpoints took.

    Raises `NumericError` when a loss or direction is not finite; the state before that step is
    then the newest checkpoint.
    """
    config, steps = job.config, job.steps
    update = OPTIMISERS[config.optimiser.name]
    lr_L1 = torch.tensor([[lane.lr] for lane in job.lanes], device=state.theta_LP.device)
    every = config.eval.every
    saved = state.step
    while state.step < steps and not stop.asked:
        if state.step == 0 and every:
            with clock("evaluate"):
                state, _ = _judge(job, state, writer)
        started = time.perf_counter()
        batches, keys = job.batches(state.step), job.noise(state.step)
        with clock("estimate"):
            estimate = job.method(config.method, state.theta_LP, batches, keys, job.scorer)
        with clock("update"):
            direction_LP, norm_L = clip(estimate.direction_LP, config.optimiser.clip)
            factor = rate(config.optimiser, state.step, steps)
            theta_LP, moments = update(
                state.theta_LP, direction_LP, lr_L1 * factor, state.moments, config.optimiser
            )
            _refuse_not_finite(job, state, writer, batches, estimate.loss_L, norm_L, theta_LP)
        if state.step == 0:
            writer.fingerprint("first_loss", _digest(estimate.loss_L))
        state = replace(state, step=state.step + 1, theta_LP=theta_LP, moments=moments)
        seconds = time.perf_counter() - started  # of the step alone, so that tokens/s says so
        done = state.step == steps
        valid_loss_L = None
        if every and (state.step % every == 0 or done):
            with clock("evaluate"):
                state, valid_loss_L = _judge(job, state, writer)
        for index, lane in enumerate(job.lanes):
            record = {
                "step": state.step,
                "loss": estimate.loss_L[index],
                "lr": lane.lr * factor,
                "grad_norm": norm_L[index],
                "tokens": batches[index].tokens,
                "supervised_tokens": batches[index].supervised,
                "seconds": seconds,
            }
            record |= {name: values[index] for name, values in estimate.stats.items()}
            writer.step(record | ({"member": lane.name} if len(job.lanes) > 1 else {}))
        for line in estimate.evidence:
            writer.evidence({"step": state.step, **line})
        if state.step % config.checkpoint_every == 0 or done:
            with clock("checkpoint"):
                writer.save_checkpoint(state.step, state.save)
            saved = state.step
        if watch:
            watch(
                Progress(
                    state.step,
                    steps,
                    sum(estimate.loss_L) / len(estimate.loss_L),
                    None if valid_loss_L is None else sum(valid_loss_L) / len(valid_loss_L),
                    sum(batch.tokens for batch in batches),
                    seconds,
                )
            )
    if state.step > saved:
        writer.save_checkpoint(state.step, state.save)
    return state


def _digest(loss_L: tuple[float, ...]) -> str:
    """SHA-256 of losses, to the last bit."""
    return hashlib.sha256(" ".join(loss.hex() for loss in loss_L).encode()).hexdigest()


def _judge(job: Job, state: State, writer: RunWriter) -> tuple[State, tuple[float, ...]]:
    """Score the lanes on the validation split; the best theta of each is part of the state."""
    setting = job.config.eval
    try:
        evaluation = validate(job, state.theta_LP, rows=setting.rows)
    except NumericError as error:
        writer.save_checkpoint(state.step, state.save)
        writer.event("not finite", step=state.step, evaluation=error.problem)
        raise NumericError(
            f"evaluation after step {state.step}: {error.problem}",
            hint=_advice(writer, "that evaluation"),
        ) from None
    writer.table(f"valid-step-{state.step}", evaluation.table)
    loss_L = tuple(evaluation.table.means().tolist())
    return state.judged(loss_L), loss_L


def validate(
    job: Job, theta_LP: torch.Tensor, *, rows: int | None = None, task_metric: bool = False
) -> Evaluation:
    """The lanes on the first `rows` of the validation split (default: all)."""
    return evaluate(
        job.engine,
        job.bank(theta_LP),
        job.splits["valid"],
        batch_size=job.config.eval.batch_size,
        rows=rows,
        task_metric=task_metric,
    )


def _refuse_not_finite(
    job: Job,
    state: State,
    writer: RunWriter,
    batches: list[Batch],
    loss_L: tuple[float, ...],
    norm_L: tuple[float, ...],
    theta_LP: torch.Tensor,
) -> None:
    """Stop before a step whose loss, direction or result is not a number; `state` is kept."""
    finite_L = theta_LP.isfinite().all(dim=1).tolist()
    lanes = zip(job.lanes, batches, loss_L, norm_L, finite_L, strict=True)
    for lane, batch, loss, norm, finite in lanes:
        if math.isfinite(loss) and math.isfinite(norm) and finite:
            continue
        writer.save_checkpoint(state.step, state.save)
        step = state.step + 1
        facts = {"step": step, "member": lane.name, "loss": repr(loss), "grad_norm": repr(norm)}
        writer.event("not finite", **facts, examples=list(batch.ids))
        after = "" if finite else ", and the adapter would not be finite after it"
        raise NumericError(
            f"step {step}: loss {loss}, gradient norm {norm}{after} ({lane.name}, lr {lane.lr:g}) "
            f"on examples {', '.join(batch.ids)}",
            hint=_advice(writer, "that step"),
        )


def _advice(writer: RunWriter, what: str) -> str:
    return (
        f"the state before {what} is kept in {writer.layout.checkpoints}; "
        "try a smaller optimiser.lr, or dtype=float32"
    )
