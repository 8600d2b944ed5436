"""Public surfaces change on purpose: run `python tests/surface/pin.py` and commit the diff."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from runpy import run_path

import pytest

import weft
from weft.core.errors import CheckFailed, InputError, NumericError

HERE = Path(__file__).parent
PIN = run_path(str(HERE / "pin.py"))
HEAVY = {"torch", "transformers", "numpy", "rich", "yaml", "matplotlib"}


@pytest.mark.parametrize("surface", ["commands", "functions"])
def test_surface_is_as_pinned(surface: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert PIN[surface]() == (HERE / f"{surface}.txt").read_text(encoding="utf-8")


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, in a plain environment."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE.parents[1]
    )


@pytest.mark.parametrize(
    ("arguments", "unwanted", "seconds"),
    [
        (["--help"], {"pydantic"}, 0.3),
        (["train", "--help"], set(), 1.0),  # typer itself checks arguments with pydantic
        (["--version"], set(), 1.0),
        ([], set(), 1.0),
    ],
)
def test_help_is_light_and_quick(arguments: list[str], unwanted: set[str], seconds: float) -> None:
    done = python(
        "import sys, time\n"
        "from weft.cli.main import main\n"
        f"assert main({arguments}) == 0\n"
        f"heavy = {HEAVY | unwanted} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(time.process_time(), file=sys.stderr)\n"
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stderr) < seconds  # of this process: others do not count


def test_import_is_light() -> None:
    done = python(f"import sys, weft; assert not {HEAVY} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_versions_agree() -> None:
    assert metadata.version("weft") == weft.__version__


def test_exit_codes() -> None:
    assert (InputError.exit_code, NumericError.exit_code, CheckFailed.exit_code) == (2, 1, 1)


def test_the_command_is_silent_about_what_is_not_its_own(tmp_path: Path) -> None:
    """In a process of its own: no progress bars, advice or warnings of other libraries."""
    command = [sys.executable, "-m", "weft", "inspect", "weft/tiny"]
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m weft recipes | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.stderr.replace("\nnext: weft train instruct\n", "") == ""
