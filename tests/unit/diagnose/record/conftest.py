"""Code that is recorded in this process, and what it left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

import weft
from weft.runs.evidence import Notice, Part
from weft.runs.recording import Recording

PartT = TypeVar("PartT", bound=Part)


@dataclass(frozen=True)
class Left:
    """What a function returned, and its recording."""

    result: Any
    recording: Recording

    def of(self, kind: type[PartT]) -> list[PartT]:
        return [event for event in self.recording.events if isinstance(event, kind)]

    def array(self, name: str | None) -> Any:
        assert name is not None
        return self.recording.array(name)


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Left]:
    """Record a call of a function; that something could not be observed is an error."""

    def run(function: Callable[[], Any], name: str = "recording") -> Left:
        with weft.record(tmp_path / name):
            result = function()
        left = Left(result, Recording(tmp_path / name))
        failed = [each.text for each in left.of(Notice) if "could not observe" in each.text]
        assert not failed, failed
        return left

    return run
