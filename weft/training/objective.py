"""A configuration's objective for the rows at hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from weft.core.errors import InputError
from weft.data.rewards import grader_for
from weft.data.split import Split
from weft.data.templates import CHOICES
from weft.engines.reward import Reward
from weft.model.config import ObjectiveConfig
from weft.model.objectives import MEANS, ONE_TOKEN, OPTION, TOKENS, Objective
from weft.training.config import RunConfig


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
        (task, *_) = {split.task.name: split.task for split in splits.values()}.values()
        return Reward(grader_for(config, task), config.decoding), ()
    for split in splits.values():
        if not split.candidates:
            raise InputError(
                "`objective.name` is `choice`, and the rows of task "
                f"{split.task.name} have no candidates to choose between",
                hint="use `objective.name=nll`; formats with candidates: "
                + ", ".join(each.name for each in CHOICES),
            )
    if config.loss == "option":
        return OPTION, ()
    if config.tokens == "mean":
        return MEANS, ()
    long = [c for split in splits.values() for c in split.candidates if len(c.ids) > 1]
    if not long:
        return ONE_TOKEN, ()
    if config.tokens == "one":
        raise InputError(
            f"`objective.tokens` is `one`, and for this base the candidate {long[0].text!r} is "
            f"{len(long[0].ids)} tokens: {long[0].shown}",
            hint="use `objective.tokens=mean`, or words of one token as `data.verbalizers`",
        )
    return MEANS, (
        f"objective: the candidates are compared by the mean log-probability of their tokens, "
        f"because {long[0].text!r} is {len(long[0].ids)} tokens: {long[0].shown}",
    )


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
