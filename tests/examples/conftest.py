"""Case studies as a reader runs them: in a directory that looks like the repository's root."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands run: the package and the examples are there, and nothing else is."""
    place = tmp_path_factory.mktemp("repository")
    for name in ("weft", "examples"):
        (place / name).symlink_to(ROOT / name)
    return place


@pytest.fixture(scope="session")
def weft(root: Path) -> Callable[..., str]:
    """Run a command there; what it printed."""

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "weft", *words], cwd=root, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def adapter(weft: Callable[..., str], root: Path) -> Path:
    """The adapter that cases a and d load, trained shorter than the page says."""
    given = ("steps=6", "batch_size=2", "eval.every=6", "eval.rows=8", "checkpoint_every=6")
    weft("train", "tables", *given, "--run-dir", "runs/tables")
    return root / "runs/tables/adapter"


@pytest.fixture(scope="session")
def recorded(weft: Callable[..., str], root: Path) -> Callable[..., str]:
    """Record a script of the examples, once; the recording."""

    @cache
    def record(script: str, *arguments: str) -> str:
        name = "-".join([script.replace("/", "-").removesuffix(".py"), *arguments])
        out = f"recordings/{name}"
        weft("record", "--out", out, "--", "python", f"examples/{script}", *arguments)
        return str(root / out)

    return record
