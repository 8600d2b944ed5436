"""The training loop. One line differs between methods: `job.method.estimate(...)`.

Shapes: L lanes (adapters that train together), P parameters of one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from types import FrameType

import numpy as np

from weft.core.errors import EngineError, NumericError
from weft.core.memory import freed_memory_kept
from weft.engines.ranks import ALONE, Ranks
from weft.methods.estimate import Estimate, Point
from weft.training import trail
from weft.training.advance import Ended
from weft.training.ground import Ground
from weft.training.job import Job
from weft.training.state import State
from weft.training.step import DIVERGED, Diverged, Part, Taken, judge, take
from weft.training.watching import Watched, watching


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
    stats: Mapping[str, float] = field(default_factory=dict)  # further numbers: means, as the loss
    is_reward: bool = False  # then losses are minus rewards


Watch = Callable[[Progress], None]


class StopRequest:
    """Set by Ctrl-C: the loop finishes its step, saves, and returns."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        """Nobody has asked yet."""
        self.asked = False
        self._ranks = ranks

    def agreed(self) -> bool:
        """Whether any rank was asked; all ranks ask this after the same step."""
        return self._ranks.any(self.asked)

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


@freed_memory_kept()
def fit(
    parts: Sequence[Part], stop: StopRequest, watch: Watch | None = None
) -> tuple[list[State], dict[int, NumericError]]:
    """Train every run from its state to its last step, or until `stop` asks.

    Runs at the same step share its forward: they must be of one base, layout and method. Returns
    the last states, and by number the runs that a loss, direction or evaluation that is not finite
    has stopped; the state before that step is then their newest checkpoint.
    """
    runs = [Underway(part) for part in parts]
    for run in runs:
        run.begin()
    shared: Shared | None = None
    while not stop.agreed() and (together := _rearmost(runs)):
        if shared is None or not shared.fits(together):
            shared = Shared.of(together)
        started = time.perf_counter()
        points = [run.job.point(run.state) for run in together]
        # `update` but for what is a phase of its own in there
        with shared.job.clock("update"), _kept(together):
            with watching(shared.job.base, together[0].state.step) as watched:
                estimates = shared.estimate(points)
            lane_seconds = (time.perf_counter() - started) / shared.lanes
            steps = [
                run.step(point, estimate, lane_seconds * len(point.batches), watched)
                for run, point, estimate in zip(together, points, estimates, strict=True)
            ]
        taken = [step for step in steps if step is not None]
        if watch and taken:
            longest = max(run.job.steps for run in runs)
            watch(_progress(taken, longest, time.perf_counter() - started))
    for run in runs:
        run.save()
    return (
        [run.state for run in runs],
        {number: run.error for number, run in enumerate(runs) if run.error is not None},
    )


@contextmanager
def _kept(runs: Sequence[Underway]) -> Iterator[None]:
    """Where an engine fails for good, each run keeps the step before that."""
    try:
        yield
    except EngineError:
        for run in runs:
            run.save()
        raise


def _rearmost(runs: Sequence[Underway]) -> list[Underway]:
    """Of the runs that can go on, those that have taken the fewest steps."""
    live = [run for run in runs if run.error is None and run.state.step < run.job.steps]
    first = min((run.state.step for run in live), default=0)
    return [run for run in live if run.state.step == first]


class Underway:
    """A run while it trains: where it stands, and why it cannot go on if so."""

    def __init__(self, part: Part) -> None:
        """Where it was left."""
        self.part = part
        self.job, self.state = part.job, part.state
        self.saved = part.state.step
        self.error: NumericError | None = None

    def begin(self) -> None:
        """Before the first step, evaluate what the run starts from."""
        if self.state.step > 0 or not self.job.config.eval.every:
            return
        try:
            with self.job.clock("validation"):
                self.state, _ = judge(self.part, self.state)
        except Diverged as found:
            self._give_up(found)

    def step(
        self, point: Point, estimate: Estimate, seconds: float, watched: Watched
    ) -> Taken | None:
        """Take a step, and save where that is due; None where it cannot be taken."""
        try:
            taken = take(self.part, self.state, point, estimate, seconds, watched)
        except Diverged as found:
            trail.broke(self.job, self.part.writer, point, self.state)
            self._give_up(found)
            return None
        self.state = taken.state
        done = self.state.step == self.job.steps
        if self.state.step % self.job.config.checkpoint_every == 0 or done:
            self.save()
        return taken

    def save(self) -> None:
        """Write a checkpoint, unless there is one of this step."""
        if self.state.step > self.saved:
            with self.job.clock("checkpoint"):
                what = f"the adapter after step {self.state.step}"
                self.job.ranks.refuse_unlike({what: self.state.digest()})
                self.part.writer.save_checkpoint(self.state.step, self.state.save)
            self.saved = self.state.step

    def _give_up(self, found: Diverged) -> None:
        """Keep the state as it was before the step, then tell that there is no next one."""
        writer = self.part.writer
        writer.save_checkpoint(self.state.step, self.state.save)
        self.saved = self.state.step
        writer.event(DIVERGED, **found.facts)
        hint = (
            f"the state before that step is kept in {writer.layout.checkpoints}; "
            "try a smaller optimiser.lr, or dtype=float32"
        )
        self.error = NumericError(str(found), hint=hint)


@dataclass(frozen=True, eq=False)
class Shared:
    """The forwards of runs that go together: their lanes side by side."""

    job: Job  # any of them: in what matters here they are alike
    grounds: list[Ground]
    lanes: int
    standing: list[tuple[Underway, list[int]]]

    @classmethod
    def of(cls, runs: Sequence[Underway]) -> Shared:
        """The lanes of these runs, one run after the other."""
        stacks = [stack for run in runs for stack in run.state.stacks]
        grounds = runs[0].job.grounds(stacks)
        return cls(runs[0].job, grounds, len(stacks), _standing(runs))

    def fits(self, runs: Sequence[Underway]) -> bool:
        """Whether nobody has committed, nor left, since."""
        return self.standing == _standing(runs)

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


def _standing(runs: Sequence[Underway]) -> list[tuple[Underway, list[int]]]:
    """Each run with the number of its lanes' commits."""
    return [(run, [len(stack) for stack in run.state.stacks]) for run in runs]


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
        {
            name: float(np.mean([x for each in taken for x in each.stats[name]]))
            for name in taken[0].stats
        },
        taken[0].is_reward,
    )
