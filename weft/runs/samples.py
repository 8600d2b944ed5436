"""Generated texts in a run directory: they may come after the run is complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from weft.core.errors import WeftError
from weft.core.files import Record, append_jsonl, truncate_jsonl
from weft.runs.layout import RunLayout


def add_samples(root: Path, records: Sequence[Record]) -> bool:
    """Append texts to a run; False, and nothing done, while another process writes the run."""
    layout = RunLayout(root)
    try:
        with FileLock(layout.lock, timeout=0, thread_local=False):
            truncate_jsonl(layout.samples)  # a line that was torn once must not grow
            for record in records:
                append_jsonl(layout.samples, record)
    except Timeout:
        return False
    except OSError as error:
        raise WeftError(f"cannot write {layout.samples}: {error.strerror or error}") from None
    return True
