"""The writer of a process that is not the first of those that train a run: it writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from weft.core.files import Record
from weft.core.table import ScoreTable
from weft.runs.evidence import Event
from weft.runs.layout import RunLayout
from weft.runs.manifest import Manifest, Status
from weft.runs.writer import RunWriter


class SilentWriter(RunWriter):
    """Knows the same manifest as the writer of the first process, and leaves the disk to that."""

    def __init__(self, layout: RunLayout, manifest: Manifest) -> None:
        """Of the run that the first process writes there."""
        self.layout = layout
        self.manifest = manifest
        self._recording = None

    def step(self, record: Record) -> None:
        """Leave it to the first process, as all of these."""

    def evidence(self, record: Record) -> None:  # noqa: D102
        pass

    def record(  # noqa: D102
        self, event: Event, arrays: Mapping[str, np.ndarray] | None = None
    ) -> None:
        pass

    def sample(self, record: Record) -> None:  # noqa: D102
        pass

    def table(self, name: str, table: ScoreTable) -> None:  # noqa: D102
        pass

    def start(self, write: Callable[[Path], None]) -> None:  # noqa: D102
        pass

    def result(self, name: str, result: Record) -> None:  # noqa: D102
        pass

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:  # noqa: D102
        pass

    def finish(self, status: Status) -> None:  # noqa: D102
        pass

    def resume_at(self, step: int) -> None:
        """Forget the events after `step`, as the first process does."""
        self._forget_events(step)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def _set(self, **fields: Any) -> None:
        self.manifest = self.manifest.model_copy(update=fields)
