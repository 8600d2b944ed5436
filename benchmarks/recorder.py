"""Programs alone and under `weft record`: what recording costs in time and on disk.

Each program is a process of its own and says how long its work took, loading left out. Rounds run
it without and with the recorder, the other one first in every second round, so that what disturbs
the machine for longer than a run disturbs both. A ratio is taken within a round before the median.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.harness import Spread
from benchmarks.race import Benchmark, Options, tell
from benchmarks.report import MIB, Report, Rows, load, origin
from weft.core.errors import CheckFailed
from weft.diagnose.words import counted
from weft.runs.recording import Recording

NAME = "recorder"
ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "diagnosis.md"
PROGRAMS = ROOT / "benchmarks" / "recorded"
TOOK = "took "
"""How the last line of a program begins; its seconds follow."""


@dataclass(frozen=True)
class Program:
    """A script below `recorded/`, and what it must have."""

    name: str
    what: str
    needs: str = "transformers"


ALL = (
    Program("loop", "a loop by hand"),
    Program("generate", "generate()"),
    Program("trainer", "PEFT and the Trainer"),
    Program("mlx_loop", "a loop in MLX", "mlx_lm"),
)


@dataclass(frozen=True)
class Run:
    """One process: seconds of its work and of all of it, what it printed, bytes it recorded."""

    work: float
    whole: float
    printed: str
    written: int = 0


@dataclass(frozen=True)
class Round:
    """A program alone and recorded."""

    alone: Run
    recorded: Run


@dataclass(frozen=True)
class Cost:
    """All rounds of one program."""

    what: str
    rounds: tuple[Round, ...]

    @property
    def row(self) -> list[str]:
        """Medians over rounds."""
        rounds = self.rounds
        return [
            self.what,
            _median([r.alone.work for r in rounds], ".2f"),
            _median([r.recorded.work for r in rounds], ".2f"),
            _median([r.recorded.work / r.alone.work for r in rounds], ".2f") + "x",
            _median([r.alone.whole for r in rounds], ".1f"),
            _median([r.recorded.whole for r in rounds], ".1f"),
            "+" + _median([r.recorded.whole - r.alone.whole for r in rounds], ".1f"),
            _median([r.recorded.written / MIB for r in rounds], ".1f"),
        ]


HEADING = ("", "work, s", "recorded", "", "process, s", "recorded", "", "MiB")


def programs(quick: bool) -> list[Program]:
    """Those whose libraries are there; one is enough to see that it works."""
    there = [each for each in ALL if find_spec(each.needs) is not None]
    return there[:1] if quick else there


def measure(
    chosen: Sequence[Program], rounds: int, progress: Callable[[str], None]
) -> tuple[Cost, ...]:
    """Run programs in turn; `CheckFailed` for one that says something else when it is recorded."""
    seen: dict[str, list[Round]] = {each.name: [] for each in chosen}
    for number in range(rounds):
        for program in chosen:
            progress(f"round {number + 1}/{rounds}: {program.name}")
            seen[program.name].append(_round(program, recorded_first=bool(number % 2)))
    return tuple(Cost(each.what, tuple(seen[each.name])) for each in chosen)


def workload(rounds: int) -> str:
    """What was run, in words."""
    return (
        "weft/tiny in fp32; loops: 8 prompts of 32 new tokens; generate(): 8 prompts at once, 64 "
        "new tokens; training: 20 steps of 4 rows; medians of "
        f"{counted(rounds, 'round')}, alone and recorded in turn; work is what comes after "
        "loading; MiB are those that were written; what is printed is the same with and without"
    )


@dataclass(frozen=True)
class Costs(Report):
    """All programs."""

    costs: tuple[Cost, ...]

    @property
    def tables(self) -> list[Rows]:
        """One row a program."""
        return [[list(HEADING), *(cost.row for cost in self.costs)]]


def run(options: Options) -> Costs:
    """Programs alone and under `weft record`."""
    before = load()
    costs = measure(programs(options.quick), options.rounds, tell)
    return Costs(**origin(NAME, workload(options.rounds), before, options.device), costs=costs)


def _round(program: Program, recorded_first: bool) -> Round:
    if recorded_first:
        recorded, alone = _recorded(program), _alone(program)
    else:
        alone, recorded = _alone(program), _recorded(program)
    if alone.printed != recorded.printed:
        raise CheckFailed(f"{program.name} does not say the same when it is recorded")
    return Round(alone, recorded)


def _alone(program: Program) -> Run:
    return _run([sys.executable, str(_script(program))], program)


def _recorded(program: Program) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "recording"
        weft = [sys.executable, "-m", "weft", "record", "--out", str(out)]
        run = _run([*weft, "--", "python", str(_script(program))], program)
        if not Recording(out).events:
            raise CheckFailed(f"nothing was recorded of {program.name}")
        written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Run(run.work, run.whole, run.printed, written)


def _script(program: Program) -> Path:
    return PROGRAMS / f"{program.name}.py"


def _run(command: Sequence[str], program: Program) -> Run:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "TRANSFORMERS_VERBOSITY": "error",
    }
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    whole = time.perf_counter() - start
    printed, found, work = done.stdout.rpartition(TOOK)
    if done.returncode or not found:
        raise CheckFailed(f"{program.name} failed:\n{done.stderr.strip()[-2000:]}")
    return Run(float(work), whole, printed)


def _median(readings: Sequence[float], form: str) -> str:
    return format(Spread.of(readings).median, form)


BENCHMARKS = (Benchmark(NAME, run, page=PAGE, only_cpu="its programs compute on the processor"),)
