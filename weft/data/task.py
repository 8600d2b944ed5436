"""What a task is: how its rows are read, and how an answer to one is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weft.data.templates import Format

MetricKind = Literal["token_accuracy", "exact_match", "choice"]
"""How answers are judged: share of supervised tokens predicted right, share of generated answers
equal to the reference, or share of rows whose right candidate scores best."""


@dataclass(frozen=True)
class Task:
    """A kind of rows with its metric; the bundled ones also have a directory of rows."""

    name: str
    format: Format
    metric: MetricKind
    normalise: Callable[[str], str] = str.strip
    """Two answers are equal when their normal forms are."""
    directory: Path | None = None

    @property
    def candidates(self) -> tuple[str, ...]:
        """The possible responses of a `choice` task."""
        return self.format.candidates


def task_of_format(row_format: Format) -> Task:
    """The task of a user's own rows."""
    metric: MetricKind = "choice" if row_format.candidates else "token_accuracy"
    return Task(row_format.name, row_format, metric)


def bundled(name: str) -> Path:
    """Where the rows of a bundled task are."""
    return Path(__file__).parents[1] / "assets" / "data" / name
