"""A configuration's objective for the rows at hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from weft.data.split import Split
from weft.engines.reward import Reward
from weft.model.config import ObjectiveConfig
from weft.model.objectives import MEANS, ONE_TOKEN, OPTION, TOKENS, Objective
from weft.training.choosing import Choosing, choosing_of, grader_of
from weft.training.config import RunConfig

CHOICES: dict[Choosing, Objective] = {"option": OPTION, "mean": MEANS, "one": ONE_TOKEN}
"""What is minimised, by how candidates are compared."""


def objective_for(
    config: ObjectiveConfig, splits: Mapping[str, Split]
) -> tuple[Objective | Reward, tuple[str, ...]]:
    """The objective, and notices of what the configuration leaves open.

    Raises `InputError` for a choice on rows without candidates, for `tokens: one` where a
    candidate is several tokens, and for a reward of rows that have none.
    """
    if config.name == "nll":
        return TOKENS, ()
    if config.name == "reward":
        return Reward(grader_of(config, splits), config.decoding), ()
    choosing, notices = choosing_of(config, splits)
    return CHOICES[choosing], notices


@contextmanager
def judging(
    run: RunConfig | None, split: Split
) -> Iterator[tuple[Objective | Reward, tuple[str, ...]]]:
    """`objective_to_judge`, with a grader that is let go of at the end."""
    objective, notices = objective_to_judge(run, split)
    try:
        yield objective, notices
    finally:
        if isinstance(objective, Reward):
            objective.grader.close()


def objective_to_judge(
    run: RunConfig | None, split: Split
) -> tuple[Objective | Reward, tuple[str, ...]]:
    """A run's own for any rows, without a run that of tokens; so, too, without candidates."""
    if run is None:
        return TOKENS, ()
    if run.objective.name == "choice" and not split.candidates:
        return TOKENS, (
            f"{split.name}: the run's objective is `choice`, and these rows have no candidates: "
            "the loss is that of tokens",
        )
    return objective_for(run.objective, {split.name: split})
