"""What an objective means for the rows at hand, before there is anything to compute (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from weft.core.errors import InputError
from weft.data.rewards import Grader, grader_for
from weft.data.split import Split
from weft.data.templates import CHOICES
from weft.model.config import ChoiceConfig, ObjectiveConfig, RewardConfig

Choosing = Literal["option", "mean", "one"]
"""By the loss of the right candidate alone, or between all: by means, or at one position."""


def notices_of(config: ObjectiveConfig, splits: Mapping[str, Split]) -> tuple[str, ...]:
    """What a configuration leaves open; an `InputError` where it does not fit the rows."""
    if config.name == "reward":
        grader_of(config, splits).close()
    return choosing_of(config, splits)[1] if config.name == "choice" else ()


def grader_of(config: RewardConfig, splits: Mapping[str, Split]) -> Grader:
    """Who grades completions; an `InputError` where the rows have no reward."""
    (task, *_) = {split.task.name: split.task for split in splits.values()}.values()
    return grader_for(config, task)


def choosing_of(
    config: ChoiceConfig, splits: Mapping[str, Split]
) -> tuple[Choosing, tuple[str, ...]]:
    """How candidates are compared, and a notice where the configuration left that open.

    Raises `InputError` for rows without candidates, and for `tokens: one` where a candidate is
    several tokens.
    """
    for split in splits.values():
        if not split.candidates:
            raise InputError(
                "`objective.name` is `choice`, and the rows of task "
                f"{split.task.name} have no candidates to choose between",
                hint="use `objective.name=nll`; formats with candidates: "
                + ", ".join(each.name for each in CHOICES),
            )
    if config.loss == "option":
        return "option", ()
    if config.tokens == "mean":
        return "mean", ()
    long = [c for split in splits.values() for c in split.candidates if len(c.ids) > 1]
    if not long:
        return "one", ()
    if config.tokens == "one":
        raise InputError(
            f"`objective.tokens` is `one`, and for this base the candidate {long[0].text!r} is "
            f"{len(long[0].ids)} tokens: {long[0].shown}",
            hint="use `objective.tokens=mean`, or words of one token as `data.verbalizers`",
        )
    return "mean", (
        f"objective: the candidates are compared by the mean log-probability of their tokens, "
        f"because {long[0].text!r} is {len(long[0].ids)} tokens: {long[0].shown}",
    )
