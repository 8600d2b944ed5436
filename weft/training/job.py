"""A checked configuration to everything that training needs: base, data, sites, engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.data.dataset import available_splits, load_splits
from weft.data.split import Split
from weft.data.stream import batch_at, steps_per_epoch
from weft.data.tokenizer import load_tokenizer
from weft.engines.local import LocalEngine
from weft.engines.scorer import LocalScorer
from weft.methods.boosting import Trigger, chain, fresh, trigger
from weft.methods.estimate import Method, Point
from weft.methods.registry import METHODS
from weft.model.adapter import Adapter, Layout
from weft.model.base import Base, context_of, load_base
from weft.model.objectives import Objective
from weft.model.sites import choose_sites
from weft.runs.timing import Stopwatch
from weft.training.advance import Course
from weft.training.config import Lane, RunConfig
from weft.training.ground import Ground, grounds
from weft.training.objective import objective_for
from weft.training.resolve import Resolved
from weft.training.state import State


@dataclass(frozen=True, eq=False)
class Job:
    """One run, ready to start."""

    resolved: Resolved
    base: Base
    layout: Layout
    splits: dict[str, Split]
    objective: Objective
    notices: tuple[str, ...]
    clock: Stopwatch = field(default_factory=Stopwatch)

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
        return self.method.forwards(self.config.method)

    @cached_property
    def course(self) -> Course:
        """How the lanes move, once a direction is estimated."""
        return Course(self.config, self.layout, self.steps)

    @cached_property
    def trigger(self) -> Trigger | None:
        """When rounds of boosting end."""
        return trigger_of(self.config, len(self.splits["train"].items))

    def point(self, state: State) -> Point:
        """Where the lanes are, with their batches and noise: functions of seed and step."""
        examples, size = self.splits["train"].examples, self.config.batch_size
        keys = [Key.of(lane.seed) for lane in self.lanes]
        free_LP = self.course.free(state.rounds)
        return Point(
            state.theta_LP,
            None if free_LP is None else free_LP.to(self.base.device),
            [batch_at(examples, state.step, size, key) for key in keys],
            [key.fold("step", state.step) for key in keys],
        )

    def initial_theta(self) -> torch.Tensor:
        """Each lane's fresh adapter, [L, P]."""
        starts = [fresh(self.layout, Key.of(lane.seed), 0) for lane in self.lanes]
        return torch.stack(starts).to(self.base.device)

    def grounds(self, stacks: Sequence[torch.Tensor]) -> list[Ground]:
        """What the lanes stand on, with these commits."""
        boost = self.config.boost
        into_weights = boost is not None and boost.merge == "weights"
        return grounds(self.base, self.layout, stacks, into_weights=into_weights)

    def scorer(self, ground: Ground) -> LocalScorer:
        """What methods need of the engine, for the lanes of a ground."""
        config = self.config
        return LocalScorer(
            ground.base,
            self.layout,
            self.objective,
            ground.stacks,
            dropout=config.adapter.dropout,
            base_dropout=config.base_dropout,
            members_per_forward=config.members_per_forward,
            rows_per_forward=config.micro_batch_size,
            clock=self.clock,
        )

    def engine(self, ground: Ground) -> LocalEngine:
        """What evaluates the lanes of a ground."""
        return LocalEngine(
            ground.base, self.config.members_per_forward, self.config.micro_batch_size
        )

    def adapter(self, stack_KP: torch.Tensor, theta_P: torch.Tensor) -> Adapter:
        """What one lane has learnt as one adapter: its commits, and its current round."""
        return chain(self.layout, stack_KP.detach().cpu(), theta_P.detach().cpu())


def load_data(config: RunConfig) -> dict[str, Split]:
    """The splits of a run, before any weight is loaded."""
    refuse_unjudged(config)
    wanted = [name for name in ("train", "valid") if name in available_splits(config.data)]
    tokenizer = load_tokenizer(config.base)  # after the files were found: this may ask the hub
    return load_splits(config.data, tokenizer, tuple(wanted), context_of(config.base))


def refuse_unjudged(config: RunConfig) -> None:
    """Raise `InputError` for a run that evaluates on rows that there are not."""
    judges = config.eval.every or config.keep == "best"
    if judges and "valid" not in available_splits(config.data):
        raise InputError(
            "the data has no validation rows, and this run evaluates while training",
            hint="give data.valid_path or data.valid_fraction, or set eval.every=0 keep=last",
        )


def load_job(resolved: Resolved, clock: Stopwatch | None = None) -> Job:
    """Load data, then weights; raises `InputError` for whatever is wrong with either.

    `clock` learns how long that took, and whatever the run does after it.
    """
    config, clock = resolved.config, clock or Stopwatch()
    with clock("loading data"):
        splits = load_data(config)
    with clock("loading the base"):
        base = load_base(config.base, config.dtype, config.device)
    _check_vocabulary(base, splits)
    layout = choose_sites(base.sites, config.adapter)
    objective, notices = objective_for(config.objective, splits)
    return Job(resolved, base, layout, splits, objective, notices, clock)


def _check_vocabulary(base: Base, splits: dict[str, Split]) -> None:
    known = base.model.get_input_embeddings().weight.shape[0]
    largest = max(split.largest_id for split in splits.values())
    if largest >= known:
        raise InputError(
            f"the tokenizer gives token {largest}, and the base knows 0 to {known - 1}",
            hint="tokenizer and base do not belong together, or its embeddings were not resized",
        )


def total_steps(config: RunConfig, rows: int) -> int:
    """Length of a run in steps, from `steps` or `epochs`."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return max(1, math.ceil(config.epochs * steps_per_epoch(rows, config.batch_size)))


def trigger_of(config: RunConfig, rows: int) -> Trigger | None:
    """When rounds of boosting end in a run over so many training rows; None without boosting."""
    if config.boost is None:
        return None
    per_epoch = steps_per_epoch(rows, config.batch_size)
    return trigger(config.boost, total_steps(config, rows), per_epoch)
