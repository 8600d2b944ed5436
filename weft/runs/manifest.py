"""The manifest: what a run is, what it really used, and how far it came."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weft.core.errors import InputError
from weft.core.files import read_json, write_json

SCHEMA_VERSION = 1
"""Raised when a reader of the old files could misread the new ones."""

Status = Literal["running", "finished", "interrupted", "failed"]


def utc_now() -> str:
    """The time, as the files of a run write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Manifest(BaseModel):
    """The record of one run. Every field is plain JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    status: Status = "running"
    """`running` in a directory that nobody writes means that the process was killed."""

    name: str
    created: str = Field(default_factory=utc_now)
    command: str = ""
    """The command line that started the run."""

    config: dict[str, Any] = {}
    """The resolved configuration: what is really used, not what was asked."""

    origins: dict[str, str] = {}
    """Where each value of `config` came from, by dotted key."""

    block: dict[str, str] = {}
    """The configuration block that was printed at the start, by label."""

    fingerprints: dict[str, str] = {}
    """A hash per stage, from the configuration to the outcome."""

    versions: dict[str, str] = {}
    hardware: dict[str, Any] = {}
    data: dict[str, dict[str, Any]] = {}
    """Counts per split: rows read, kept, dropped, truncated."""

    sites: dict[str, dict[str, Any]] = {}
    """Rank and scale of every site of the adapter."""

    notices: tuple[str, ...] = ()
    """What the user should know and did not ask for."""

    events: tuple[dict[str, Any], ...] = ()
    """What happened, in order: `kind`, `time` and facts."""

    def save(self, path: Path) -> None:
        """Write atomically, in the order of the fields."""
        write_json(path, self.model_dump(), sort_keys=False)

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read and check a manifest; every problem in it is reported at once."""
        raw = read_json(path)
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema version {version}; this Weft reads up to {SCHEMA_VERSION}",
                hint="update Weft",
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, issue['loc'])) or 'the file'}: {issue['msg']}"
                for issue in error.errors()
            ]
            raise InputError(f"{path} is not a run manifest:\n  " + "\n  ".join(problems)) from None
