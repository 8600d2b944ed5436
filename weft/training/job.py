"""A checked configuration to everything that training needs: base, data, sites, engine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from weft.core.batch import Batch
from weft.core.errors import InputError
from weft.core.keys import Key
from weft.data.dataset import available_splits, load_splits
from weft.data.split import Split
from weft.data.stream import batch_at, steps_per_epoch
from weft.data.tokenizer import load_tokenizer
from weft.engines.local import LocalEngine
from weft.engines.scorer import LocalScorer
from weft.methods.estimate import Estimator
from weft.methods.registry import METHODS
from weft.model.adapter import Adapter, Layout, initial_adapter
from weft.model.bank import Bank
from weft.model.base import Base, context_of, load_base
from weft.model.sites import choose_sites
from weft.training.config import Lane, RunConfig
from weft.training.resolve import Resolved


@dataclass(frozen=True, eq=False)
class Job:
    """One run, ready to start."""

    resolved: Resolved
    base: Base
    layout: Layout
    splits: dict[str, Split]
    engine: LocalEngine
    scorer: LocalScorer
    method: Estimator

    @property
    def config(self) -> RunConfig:
        """The checked configuration."""
        return self.resolved.config

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The adapters that train."""
        return self.config.lanes

    @property
    def steps(self) -> int:
        """Length of the run in steps."""
        return total_steps(self.config, len(self.splits["train"].items))

    def batches(self, step: int) -> list[Batch]:
        """Each lane's batch of a step: a function of its seed and the step."""
        examples = self.splits["train"].examples
        size = self.config.batch_size
        return [batch_at(examples, step, size, Key.of(lane.seed)) for lane in self.lanes]

    def noise(self, step: int) -> list[Key]:
        """Each lane's key for the noise of a step."""
        return [Key.of(lane.seed).fold("step", step) for lane in self.lanes]

    def initial_theta(self) -> torch.Tensor:
        """Each lane's fresh adapter, [L, P]."""
        fresh = [initial_adapter(self.layout, Key.of(lane.seed)).flat for lane in self.lanes]
        return torch.stack(fresh).to(self.base.device)

    def bank(self, theta_LP: torch.Tensor) -> Bank:
        """The lanes as members of a bank."""
        return Bank.from_flat([lane.name for lane in self.lanes], self.layout, theta_LP)

    def adapter(self, flat_P: torch.Tensor) -> Adapter:
        """One lane's parameters as an adapter."""
        return Adapter(self.layout, flat_P.detach().cpu().clone())


def load_data(config: RunConfig) -> dict[str, Split]:
    """The splits of a run, before any weight is loaded."""
    tokenizer = load_tokenizer(config.base)
    wanted = [name for name in ("train", "valid") if name in available_splits(config.data)]
    if "valid" not in wanted and (config.eval.every or config.keep == "best"):
        raise InputError(
            "the data has no validation rows, and this run evaluates while training",
            hint="give data.valid_path or data.valid_fraction, or set eval.every=0 keep=last",
        )
    return load_splits(config.data, tokenizer, tuple(wanted), context_of(config.base))


def load_job(resolved: Resolved) -> Job:
    """Load data, then weights; raises `InputError` for whatever is wrong with either."""
    config = resolved.config
    splits = load_data(config)
    base = load_base(config.base, config.dtype, config.device)
    _check_vocabulary(base, splits)
    layout = choose_sites(base.sites, config.adapter)
    scorer = LocalScorer(
        base,
        layout,
        dropout=config.adapter.dropout,
        base_dropout=config.base_dropout,
        members_per_forward=config.members_per_forward,
        rows_per_forward=config.micro_batch_size,
    )
    engine = LocalEngine(base, config.members_per_forward, config.micro_batch_size)
    return Job(resolved, base, layout, splits, engine, scorer, METHODS[config.method.name])


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
