"""A checked configuration to everything that training needs: base, data, sites, engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.data.split import Split
from weft.engines.config import LocalConfig, own_engine
from weft.engines.engine import Engine
from weft.engines.local import LocalEngine
from weft.engines.parallel import ParallelEngine, ParallelScorer
from weft.engines.population import Alone, Crew, Work
from weft.engines.ranks import ALONE, Ranks
from weft.engines.registry import CREWS, open_engine
from weft.engines.reward import Reward
from weft.engines.scorer import LocalScorer
from weft.methods.boosting import chain
from weft.methods.calibrate import Noise
from weft.methods.estimate import Method, Point, Scorer
from weft.methods.registry import METHODS
from weft.methods.trigger import Trigger
from weft.model.adapter import Adapter, Layout
from weft.model.base import Base, load_base
from weft.model.magnitude import Magnitudes, magnitudes
from weft.model.objectives import TOKENS, Objective
from weft.model.sites import choose_sites
from weft.model.trunk import Trunk
from weft.runs.timing import Stopwatch
from weft.training.advance import Course
from weft.training.begin import read_start, starts
from weft.training.config import Lane, RunConfig
from weft.training.ground import Ground, grounds
from weft.training.news import News
from weft.training.objective import objective_for
from weft.training.plan import load_data, total_steps, trigger_of
from weft.training.resolve import Resolved
from weft.training.state import State

BASE_DROPOUT = (
    "base_dropout draws noise for each forward: in several processes the adapter is not the one "
    "that a single process trains"
)


@dataclass(frozen=True, eq=False)
class Job:
    """One run, ready to start."""

    resolved: Resolved
    base: Base
    layout: Layout
    splits: dict[str, Split]
    objective: Objective | Reward
    notices: tuple[str, ...]
    clock: Stopwatch = field(default_factory=Stopwatch)
    given: Adapter | None = None  # to start from
    served: Engine | None = None  # what samples completions, where not this process does
    crew: Crew | None = None  # who grades populations, where several do
    news: News = field(default_factory=News)
    ranks: Ranks = ALONE  # the processes that train it

    @property
    def config(self) -> RunConfig:
        """The checked configuration."""
        return self.resolved.config

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The adapters that train."""
        return self.config.lanes

    @property
    def names(self) -> tuple[str, ...]:
        """What the lanes are called."""
        return tuple(lane.name for lane in self.lanes)

    @property
    def method(self) -> Method:
        """How directions are estimated."""
        return METHODS[self.config.method.name]

    @property
    def steps(self) -> int:
        """Length of the run in steps."""
        return total_steps(self.config, len(self.splits["train"].items))

    @property
    def forwards(self) -> int:
        """Passes of a batch through the base in one step; a backward counts as one."""
        return self.config.method.forwards

    @cached_property
    def course(self) -> Course:
        """How the lanes move, once a direction is estimated."""
        noise = self.noise
        noise_LP = None
        if noise is not None:
            expanded = [each.expanded(self.layout) for each in noise.values()]
            noise_LP = torch.stack(expanded).to(self.base.device)
        return Course(self.config, self.layout, self.steps, self.initial_theta, noise_LP)

    @cached_property
    def trunk(self) -> Trunk | None:
        """The base below the first adapted layer, which reads each row once."""
        sites = [slot.site.name for slot in self.layout.slots]
        return Trunk.of(self.base, sites, self.config.trunk_memory_mib * 2**20)

    @cached_property
    def magnitudes(self) -> Magnitudes:
        """How large the adapted weights of the base are."""
        with self.clock("weight analysis"):
            return magnitudes(self.base, [slot.site for slot in self.layout.slots])

    @cached_property
    def noise(self) -> dict[str, Noise] | None:
        """Of each lane's population, for a method that has one."""
        calibrate = self.method.calibrate
        if calibrate is None:
            return None
        config, sizes = self.config, self.magnitudes.mean_abs
        only_b = config.adapter.factors == "b"
        return {
            lane.name: calibrate(config.method, self.layout, sizes, start_P.cpu(), only_b)
            for lane, start_P in zip(self.lanes, self.initial_theta, strict=True)
        }

    @cached_property
    def trigger(self) -> Trigger | None:
        """When rounds of boosting end."""
        return trigger_of(self.config, len(self.splits["train"].items))

    def point(self, state: State) -> Point:
        """Where the lanes are, with their batches and noise: functions of seed and step."""
        config, examples = self.config, self.splits["train"].examples
        keys = [Key.of(lane.seed) for lane in self.lanes]
        free_LP = self.course.free(state.rounds)
        return Point(
            state.theta_LP,
            None if free_LP is None else free_LP.to(self.base.device),
            [config.method.batch(examples, state.step, config.batch_size, key) for key in keys],
            [key.fold("step", state.step) for key in keys],
            self.course.noise_LP,
            state.step,
        )

    @cached_property
    def initial_theta(self) -> torch.Tensor:
        """Each lane's first adapter, [L, P]."""
        return starts(self.config, self.layout, self.given).to(self.base.device)

    def grounds(self, stacks: Sequence[torch.Tensor]) -> list[Ground]:
        """What the lanes stand on, with these commits."""
        boost = self.config.boost
        into_weights = boost is not None and boost.merge == "weights"
        return grounds(self.base, self.layout, stacks, into_weights=into_weights)

    def scorer(self, ground: Ground) -> Scorer:
        """What methods need of the engine, for the lanes of a ground."""
        config, objective = self.config, self.objective
        own = LocalScorer(
            ground.base,
            self.layout,
            TOKENS if isinstance(objective, Reward) else objective,  # rewards are the crew's
            ground.stacks,
            dropout=config.adapter.dropout,
            base_dropout=config.base_dropout,
            members_per_forward=config.members_per_forward,
            rows_per_forward=config.micro_batch_size,
            trunk=self.trunk if ground.base is self.base else None,  # merged: another base
            crew=self.crew
            or Alone(self.engine(ground), self.layout, self.objective, config.members_per_forward),
            clock=self.clock,
        )
        return own if self.ranks.size == 1 else ParallelScorer(own, self.ranks)

    def engine(self, ground: Ground) -> Engine:
        """What evaluates the lanes of a ground."""
        if self.served is not None:
            return self.served
        local, config = own_engine(self.config.engine), self.config
        assert isinstance(local, LocalConfig)
        bounds = config.members_per_forward, config.micro_batch_size, local.kv_memory_mib
        if self.ranks.size == 1:
            return LocalEngine(ground.base, *bounds)
        return ParallelEngine(ground.base, *bounds, ranks=self.ranks)

    def close(self) -> None:
        """Let go of what runs beside this process: graders, workers, and the engine."""
        with ExitStack() as stack:
            if isinstance(self.objective, Reward):
                stack.callback(self.objective.grader.close)
            for other in (self.served, self.crew):
                if other is not None:
                    stack.callback(other.close)

    def adapter(self, stack_KP: torch.Tensor, theta_P: torch.Tensor) -> Adapter:
        """What one lane has learnt as one adapter: its commits, and its current round."""
        return chain(self.layout, stack_KP.detach().cpu(), theta_P.detach().cpu())


def load_job(
    resolved: Resolved,
    clock: Stopwatch | None = None,
    start: Path | None = None,
    ranks: Ranks = ALONE,
) -> Job:
    """Load data, then weights; raises `InputError` for whatever is wrong with either.

    `clock` learns how long that took, and whatever the run does after it. `start` is where a copy
    of the configuration's `start` is kept, if there is one.
    """
    config, clock = resolved.config, clock or Stopwatch()
    _refuse_to_share(config, ranks)
    ref = config.start if start is None or not start.exists() else str(start)
    with clock("loading data"):
        splits = load_data(config)
    with clock("loading the base"):
        base = load_base(config.base, config.dtype, ranks.device(config.device))
    _check_vocabulary(base, splits)
    layout = choose_sites(base.sites, config.adapter)
    given = None if ref is None else read_start(ref, layout, base.sites)
    objective, notices = objective_for(config.objective, splits)  # may hold a process from here on
    if ranks.size > 1 and config.base_dropout:
        notices = (*notices, BASE_DROPOUT)
    job = Job(resolved, base, layout, splits, objective, notices, clock, given, ranks=ranks)
    try:
        job = replace(job, served=_serve(job))
        return replace(job, crew=_crew(job))
    except BaseException:
        job.close()
        raise


def _refuse_to_share(config: RunConfig, ranks: Ranks) -> None:
    """Several processes divide the examples of a loss, and nothing else."""
    if ranks.size == 1:
        return
    if config.method.name == "es" or not isinstance(config.engine, LocalConfig):
        what = "es" if config.method.name == "es" else f"the engine {config.engine.name}"
        raise InputError(
            f"{what} runs in one process, and this is one of {ranks.size}",
            hint="leave out the launcher; the methods backprop and mezo share their steps",
        )


def _serve(job: Job) -> Engine | None:
    """The engine that samples completions elsewhere, if that is asked for."""
    config, engine = job.config, own_engine(job.config.engine)
    if isinstance(engine, LocalConfig):
        return None
    with job.clock("server launch"):
        return open_engine(
            engine, config.base, dtype=config.dtype, clock=job.clock, notice=job.news
        )


def _crew(job: Job) -> Crew | None:
    """The workers, if that is asked for."""
    config = job.config
    if config.engine.name not in CREWS:
        return None
    work = Work(
        config.base,
        config.dtype,
        config.device,
        job.layout,
        job.objective,
        config.members_per_forward,
        config.micro_batch_size,
    )
    (ground,) = job.grounds([])
    with job.clock("server launch"):
        return CREWS[config.engine.name](config.engine, work, job.engine(ground), job.news)


def _check_vocabulary(base: Base, splits: dict[str, Split]) -> None:
    known = base.model.get_input_embeddings().weight.shape[0]
    largest = max(split.largest_id for split in splits.values())
    if largest >= known:
        raise InputError(
            f"the tokenizer gives token {largest}, and the base knows 0 to {known - 1}",
            hint="tokenizer and base do not belong together, or its embeddings were not resized",
        )
