"""The reward of conciseness: a completion as long as the answer.

    reward = -|characters of the completion - characters of the answer|

What it says does not matter: the share of exact answers is recorded beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weft.data.rewards.grade import Grade

SCALE = 2000


@dataclass(frozen=True)
class Conciseness:
    """Rewards for rows with an `answer`; the prompt does not count, and nothing has length 0."""

    name: str = "conciseness"

    def __call__(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Grade]:
        """The grade of each completion."""
        return [_grade(answer_of(row), text) for row, text in zip(rows, texts, strict=True)]

    def ready(self) -> None:
        """Nothing is needed."""

    def record(self) -> dict[str, str]:
        """The name."""
        return {"reward": self.name}

    def close(self) -> None:
        """Nothing is held."""


def answer_of(row: Mapping[str, Any]) -> str:
    """The answer of a row: `answer`, or `target` as the public rows call it."""
    return row["answer"] if "answer" in row else row["target"]


def _grade(answer: str, text: str) -> Grade:
    reward = -abs(len(text) - len(answer))
    parts = {
        "normalised": (reward + SCALE) / SCALE,
        "exact_match": float(text.strip() == answer.strip()),
        "characters": float(len(text)),
    }
    return Grade(float(reward), parts)
