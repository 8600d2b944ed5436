"""How long commands take that compute next to nothing: processes from start to end.

`weft diff` compares two finished runs of two steps each, which are made first and not timed. Every
command is run once before it is timed, so that its byte code is there, as that of an installed
package is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Spread
from benchmarks.race import Benchmark, Options, tell
from benchmarks.report import Report, Rows, load, origin
from weft.core.errors import CheckFailed

NAME = "start_up"
RECIPE = "instruct"
RUNS = ("a", "b")
COMMANDS = {
    "weft --help": ("--help",),
    "weft check": ("check", RECIPE),
    "weft diff": ("diff", *RUNS),
}
MAKE = ("train", RECIPE, "steps=2", "batch_size=2", "eval.every=0", "keep=last")


@dataclass(frozen=True)
class Times(Report):
    """Seconds of each command, one entry a process."""

    seconds: dict[str, tuple[float, ...]]

    @property
    def tables(self) -> list[Rows]:
        """One row a command."""
        return [[["", "seconds"], *([name, _said(each)] for name, each in self.seconds.items())]]


def run(options: Options) -> Times:
    """All commands in turn, so that what disturbs the machine disturbs all of them."""
    before = load()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in enumerate(RUNS):
            tell(f"making run {name}")
            weft([*MAKE, f"seed={seed}", "--run-dir", name], folder)
        for name, arguments in COMMANDS.items():
            tell(f"warm-up: {name}")
            weft(arguments, folder)
        for number in range(options.rounds):
            for name, arguments in COMMANDS.items():
                tell(f"round {number + 1}/{options.rounds}: {name}")
                start = time.perf_counter()
                weft(arguments, folder)
                seconds[name].append(time.perf_counter() - start)
    what = f"`weft check {RECIPE}`, `weft diff` of two runs of 2 steps; {options.rounds} rounds"
    readings = {name: tuple(each) for name, each in seconds.items()}
    return Times(**origin(NAME, what, before, options.device), seconds=readings)


def weft(arguments: Sequence[str], folder: str | Path) -> None:
    """One process; `CheckFailed` where it fails."""
    command = [sys.executable, "-m", "weft", *arguments]
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": root}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else Weft would be compiled in every process
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise CheckFailed(f"weft {' '.join(arguments)} failed:\n{done.stderr.strip()[-2000:]}")


def _said(readings: Sequence[float]) -> str:
    spread = Spread.of(readings)
    return f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


BENCHMARKS = (
    Benchmark(NAME, run, only_cpu="commands that load no model have nothing to do there"),
)
