"""A process that has loaded the libraries, and forks for each script that it is asked to run.

Loading torch, transformers, peft and Weft takes longer than most sides run. It is done once, which
also means that all cases of a run see one state of the code. Jobs come as lines of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Literal

REPOSITORY = Path(__file__).parents[3]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONPATH": str(REPOSITORY),
    "PYTHONWARNINGS": "ignore",
}


TINY = REPOSITORY / "weft" / "assets" / "tiny"
WEFT = ("weft.cli.main", "weft.training.train", "weft.training.generate")
PACKAGES = ("weft.cli", "weft.diagnose", "weft.report")
"""All of these are loaded before the first fork, but for what is for MLX."""


@dataclass(frozen=True)
class Job:
    """What to run in `cwd`: `main.py` as it is, `main.py` recorded below `out`, or `weft ...`."""

    what: Literal["script", "recorded", "weft"]
    cwd: str
    stdout: str
    stderr: str
    arguments: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    limit: float = 240.0


@dataclass(frozen=True)
class Done:
    """How it ended; 124 where it was stopped at its limit."""

    code: int
    seconds: float
    processor: float
    """Seconds of processors: what it takes where nothing else runs."""


class Zygote:
    """The other end: one process, which runs one job at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.suite.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **ENVIRONMENT},
        )

    def run(self, job: Job) -> Done:
        if job.env:
            return run_alone(job)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(job)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that forks has ended: {self.process.wait()}")
        return Done(**json.loads(line))

    def close(self) -> None:
        with self.process:  # closes both pipes, and waits
            pass


def run_alone(job: Job) -> Done:
    """In a process from the start, as a user would."""
    command = {
        "script": ["main.py"],
        "recorded": ["-m", "weft", "record", "--out", "out", "--", "python", "main.py"],
        "weft": ["-m", "weft", *job.arguments],
    }[job.what]
    started = time.perf_counter()
    with open(job.stdout, "w") as out, open(job.stderr, "w") as err:
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=job.cwd,
            env={**os.environ, **ENVIRONMENT, **job.env},
            stdout=out,
            stderr=err,
            timeout=job.limit,
            check=False,
        )
    spent = time.perf_counter() - started
    return Done(ended.returncode, spent, spent)


def serve(jobs: IO[str], answers: IO[str]) -> None:
    for line in jobs:
        job = Job(**json.loads(line))
        started = time.perf_counter()
        child = os.fork()
        if child == 0:
            _become(job)
        code, processor = _wait(child, job.limit)
        done = Done(code, time.perf_counter() - started, processor)
        answers.write(json.dumps(asdict(done)) + "\n")
        answers.flush()


def _wait(child: int, limit: float) -> tuple[int, float]:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        pid, status, used = os.wait4(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    _, _, used = os.wait4(child, 0)
    return 124, used.ru_utime + used.ru_stime


def _become(job: Job) -> None:
    """The rest of this process is the job."""
    code = 1
    os.fsync = lambda file: None  # what a side writes need not survive the machine
    try:
        os.chdir(job.cwd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in ((1, job.stdout), (2, job.stderr)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        _do(job)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _do(job: Job) -> None:
    if job.what == "weft":
        from weft.cli.main import main

        sys.exit(main(job.arguments))
    if job.what == "recorded":
        from weft.diagnose.record.child import main as record

        sys.argv = ["record", "out", "script", "main.py", "python main.py"]
        record()
        return
    sys.argv = ["main.py"]
    sys.path.insert(0, os.getcwd())
    runpy.run_path("main.py", run_name="__main__")


def warm() -> None:
    """Everything that scripts, Weft's runs and diagnoses import, and what a first load looks up.

    Nothing is computed: threads of PyTorch that begin before a fork fail now and then after it.
    """
    import peft  # noqa: F401
    import transformers
    from transformers.models.gpt2 import modeling_gpt2  # noqa: F401

    for name in WEFT:
        importlib.import_module(name)
    for package in map(importlib.import_module, PACKAGES):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "mlx" not in module.name:
                importlib.import_module(module.name)
    transformers.AutoTokenizer.from_pretrained(TINY)
    transformers.AutoConfig.from_pretrained(TINY)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not be taken for an answer
    warm()
    serve(sys.stdin, answers)
