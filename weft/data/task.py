"""What a task is: how its rows are read, and how an answer to one is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from weft.data.rewards import REWARDS
from weft.data.templates import Format, Judge


@dataclass(frozen=True)
class Task:
    """A kind of rows with its metrics; the bundled ones also have a directory of rows."""

    name: str
    format: Format
    directory: Path | None = None

    @property
    def candidates(self) -> tuple[str, ...]:
        """The possible responses of a task that chooses between them."""
        return self.format.candidates

    @property
    def judges(self) -> Mapping[str, Judge]:
        """How generated responses are judged, by metric."""
        return self.format.judges

    @property
    def metric(self) -> str:
        """The main metric: a share of rows, or of supervised tokens that are predicted right.

        `choice` is the share of rows whose right candidate scores best; a judge's metric that of
        rows whose greedy response it accepts. `reward` is no share: it is the mean reward.
        """
        if self.candidates:
            return "choice"
        if self.format.name in REWARDS:
            return "reward"
        return next(iter(self.judges), "token_accuracy")


def task_of_format(row_format: Format) -> Task:
    """The task of a user's own rows."""
    return Task(row_format.name, row_format)


def bundled(name: str) -> Path:
    """Where the rows of a bundled task are."""
    return Path(__file__).parents[1] / "assets" / "data" / name
