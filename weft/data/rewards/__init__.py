"""Rewards: what grades completions. A new one is a file here and a line in `REWARDS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from weft.core.errors import InputError
from weft.data.rewards.conciseness import Conciseness
from weft.data.rewards.countdown import Countdown, Mode
from weft.data.rewards.grade import Grade, Grader
from weft.data.rewards.user import UserReward

if TYPE_CHECKING:
    from weft.data.task import Task

__all__ = ["REWARDS", "Grade", "Grader", "RewardSettings", "grader_for"]

REWARDS: dict[str, Callable[[Mode], Grader]] = {
    "countdown": Countdown,
    "conciseness": lambda mode: Conciseness(),
}
"""Graders by the name of the format of rows that they grade."""


class RewardSettings(Protocol):
    """What a run says of its reward (`objective: {name: reward, ...}`)."""

    @property
    def mode(self) -> Mode: ...  # noqa: D102
    @property
    def file(self) -> Path | None: ...  # noqa: D102
    @property
    def function(self) -> str: ...  # noqa: D102
    @property
    def timeout(self) -> float: ...  # noqa: D102


def grader_for(settings: RewardSettings, task: Task) -> Grader:
    """The user's own reward where a file is given, else that of the task's rows.

    Raises `InputError` where the file cannot be used, and where the rows have no reward.
    """
    if settings.file is not None:
        return UserReward(settings.file, settings.function, settings.timeout)
    if task.format.name not in REWARDS:
        raise InputError(
            f"rows of format {task.format.name} have no reward of their own",
            hint=f"those that have: {', '.join(REWARDS)}; or give a function of yours as "
            "`objective.file`",
        )
    return REWARDS[task.format.name](settings.mode)
