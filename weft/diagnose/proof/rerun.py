"""A run of Weft taken again from its configuration by its own loop; nothing is written.

Shapes: L lanes, P parameters of one adapter.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weft.core.errors import InputError
from weft.core.files import Record
from weft.core.keys import Key
from weft.data.split import Split
from weft.diagnose.proof.forward import Engine, Unspliced
from weft.diagnose.proof.settings import Setup
from weft.diagnose.proof.training import Learned
from weft.engines.reward import Reward
from weft.model.base import Base, load_base
from weft.model.objectives import Objective
from weft.model.probing import embeddings_moved
from weft.model.sites import choose_sites
from weft.runs.layout import RunLayout
from weft.runs.manifest import Manifest
from weft.runs.silent import SilentWriter
from weft.training.begin import read_start
from weft.training.fit import StopRequest, fit
from weft.training.job import Job
from weft.training.objective import objective_for
from weft.training.plan import load_data
from weft.training.resolve import Resolved
from weft.training.state import State
from weft.training.step import Part

BUSY = 6.0
"""A machine that does other things besides may take so many times as long."""


class Cost:
    """Seconds that were used, as of a machine that does nothing else."""

    def __init__(self) -> None:
        """From now on."""
        self._worked, self._passed = time.process_time(), time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of each processor; where others are waited for, a part of the time that passes."""
        worked = (time.process_time() - self._worked) / torch.get_num_threads()
        return max(worked, (time.perf_counter() - self._passed) / BUSY)


@dataclass(frozen=True, eq=False)
class Taken:
    """Steps that were taken again: what a run would have recorded, and what they came to."""

    lines: tuple[Record, ...]  # one a step
    ended: tuple[Mapping[str, Any], ...]  # rounds of boosting
    state: State
    learned: Learned | None  # None: a number was not finite
    seconds: float
    kept: State | None = None  # after the step that was asked for


class Rerun:
    """Takes steps of runs again, each course once. Close it: graders may be processes."""

    def __init__(self, engine: Engine) -> None:
        """`engine` counts the forwards."""
        self._engine = engine
        self._bases: dict[tuple[str, str, str], Base] = {}
        self._data: dict[str, dict[str, Split]] = {}
        self._objectives: dict[str, tuple[Objective | Reward, tuple[str, ...]]] = {}
        self._jobs: dict[str, Job] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Rerun:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def job(self, setup: Setup) -> Job:
        """Everything that its steps need; `InputError` where something is not there, or wrong."""
        if setup.key not in self._jobs:
            self._jobs[setup.key] = self._job(setup)
        return self._jobs[setup.key]

    def take(
        self,
        setup: Setup,
        steps: int,
        *,
        since: State | None = None,
        keep: int | None = None,
        nudge: Key | None = None,
        seconds: float = float("inf"),
    ) -> Taken:
        """The steps after `since` (None: from the beginning) up to step `steps` or the run's end.

        `nudge` moves embeddings by one unit in the last place. After `seconds` no step is begun.
        """
        job, clock = self.job(setup), Cost()
        state, kept, broken = since or State.fresh(job.initial_theta), None, False
        writer = _Lines(RunLayout(Path()), Manifest(name=""))
        while state.step < min(steps, job.steps) and clock.seconds < seconds:
            kept = state if state.step == keep else kept
            with ExitStack() as stack:
                if nudge is not None:
                    stack.enter_context(embeddings_moved(job.base, nudge.fold(state.step)))
                (state,), errors = fit([Part(job, state, writer)], _AfterOne())
            self._engine.forwards += job.forwards
            if errors:
                broken = True
                break
        return Taken(
            tuple(writer.lines),
            tuple(each for each in writer.manifest.events if "of_step" in each),
            state,
            None if broken else _learned(job, state),
            clock.seconds,
            state if state.step == keep else kept,
        )

    def _job(self, setup: Setup) -> Job:
        config = setup.config
        wanted = config.base, config.dtype, config.device
        read = json.dumps([setup.at("data"), config.base, config.objective.name], sort_keys=True)
        if read not in self._data:
            self._data[read] = load_data(config)
        splits = self._data[read]
        if wanted not in self._bases:
            self._bases[wanted] = load_base(*wanted)
        base = self._bases[wanted]
        layout = choose_sites(base.sites, config.adapter)
        given = None
        if config.start is not None:
            given = read_start(str(setup.start), layout, base.sites)
        asked = f"{read} {json.dumps(setup.at('objective'), sort_keys=True)}"
        if asked not in self._objectives:
            self._objectives[asked] = objective_for(config.objective, splits)
            objective, _ = self._objectives[asked]
            if isinstance(objective, Reward):
                self._stack.callback(objective.grader.close)
        resolved = Resolved(config, {}, "", "", ())
        return Job(resolved, base, layout, splits, *self._objectives[asked], given=given)


def named(rerun: Rerun, name: str, setup: Setup) -> Job:
    """The job of a side; `Unspliced` with the reason where it cannot be made."""
    if setup.problem is not None:
        raise Unspliced(f"{name}'s configuration: {setup.problem}")
    try:
        return rerun.job(setup)
    except InputError as error:
        raise Unspliced(f"{name}: {error.problem}") from None


class _Lines(SilentWriter):
    """Keeps what a run says of its steps."""

    def __init__(self, layout: RunLayout, manifest: Manifest) -> None:
        super().__init__(layout, manifest)
        self.lines: list[Record] = []

    def step(self, record: Record) -> None:
        self.lines.append(record)


class _AfterOne(StopRequest):
    """Asks to stop once a step was taken."""

    def agreed(self) -> bool:
        """Not at first."""
        before, self.asked = self.asked, True
        return before


def _learned(job: Job, state: State) -> Learned:
    """The only lane's adapter with all that it has committed."""
    adapter = job.adapter(state.stacks[0], state.theta_LP[0])
    scales = {name: slot.scale for name, slot in adapter.layout.by_name.items()}
    terms = {
        name: ((scales[name], b_OR.double(), a_RI.double()),)
        for name, (a_RI, b_OR) in adapter.sites.items()
    }
    return Learned((), {}, terms)


def alike(x: State, y: State) -> bool:
    """Whether two states are one, bit by bit, in what the next step depends on."""
    pairs = [
        (x.theta_LP, y.theta_LP),
        (x.moments.first_LP, y.moments.first_LP),
        (x.moments.second_LP, y.moments.second_LP),
        *zip(x.stacks, y.stacks, strict=True),
    ]
    return x.step == y.step and all(
        one.shape == other.shape and torch.equal(one, other) for one, other in pairs
    )


def first_apart(one: Sequence[Record], other: Sequence[Record]) -> int | None:
    """The first step, counted from 1, of which two runs recorded something else."""
    for a, b in zip(one, other, strict=False):
        if any(a.get(key) != b.get(key) for key in ("batch", "labels", "adapter", "loss", "lr")):
            return int(a["step"])
    if len(one) != len(other):
        return min(len(one), len(other)) + 1
    return None
