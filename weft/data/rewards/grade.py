"""What a reward says of a completion, and who says it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Grade:
    """The reward of one completion, and what it is made of."""

    reward: float
    """NaN: it could not be graded."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What stands behind the reward; runs record the means."""
    failure: str | None = None
    """Why it could not be graded."""

    @classmethod
    def failed(cls, why: str) -> Grade:
        """The grade of a completion that could not be graded."""
        return cls(math.nan, failure=why)


class Grader(Protocol):
    """Grades completions: any text gives a `Grade`, in bounded time, and nothing is raised."""

    @property
    def name(self) -> str:
        """How the reward is called."""
        ...

    def __call__(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Grade]:
        """The grade of each completion, judged by the row of its prompt."""
        ...

    def ready(self) -> None:
        """Get what grading needs, which does not travel: raises `InputError` where it cannot."""
        ...

    def record(self) -> dict[str, str]:
        """What grades, to be stored beside the rewards: those of equal records can be compared."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...
