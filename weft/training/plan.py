"""What a run reads and how long it is, before PyTorch or any weight is loaded."""

from __future__ import annotations

import math

from weft.core.errors import InputError
from weft.data.dataset import available_splits, load_splits
from weft.data.split import Split
from weft.data.tokenizer import row_tokenizer
from weft.methods.trigger import Trigger, trigger
from weft.model.facts import context_of
from weft.training.config import RunConfig


def load_data(config: RunConfig) -> dict[str, Split]:
    """The splits of a run, before any weight is loaded."""
    refuse_unjudged(config)
    wanted = [name for name in ("train", "valid") if name in available_splits(config.data)]
    tokenizer = row_tokenizer(config.base)  # after the files were found: this may ask the hub
    return load_splits(
        config.data,
        tokenizer,
        tuple(wanted),
        context_of(config.base),
        responses=config.objective.name != "reward",
    )


def refuse_unjudged(config: RunConfig) -> None:
    """Raise `InputError` for a run that evaluates on rows that there are not."""
    judges = config.eval.every or config.keep == "best"
    if judges and "valid" not in available_splits(config.data):
        raise InputError(
            "the data has no validation rows, and this run evaluates while training",
            hint="give data.valid_path or data.valid_fraction, or set eval.every=0 keep=last",
        )


def total_steps(config: RunConfig, rows: int) -> int:
    """Length of a run in steps, from `steps` or `epochs`."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return max(1, math.ceil(steps_of(config, rows, config.epochs)))


def steps_of(config: RunConfig, rows: int, epochs: float = 1) -> float:
    """How many steps so many epochs take; a part of a step where they end within one."""
    return config.method.steps(config.batch_size, rows, epochs)


def rows_of_step(config: RunConfig, rows: int) -> int:
    """How many of the training rows one step reads."""
    return config.method.rows(config.batch_size, rows)


def trigger_of(config: RunConfig, rows: int) -> Trigger | None:
    """When rounds of boosting end in a run over so many training rows; None without boosting."""
    if config.boost is None:
        return None
    per_epoch = math.ceil(steps_of(config, rows))
    return trigger(config.boost, total_steps(config, rows), per_epoch)
