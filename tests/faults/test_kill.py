"""A training process killed at any moment loses nothing: the final adapter is byte for byte that
of a run that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from weft.runs.reader import RunReader

pytestmark = pytest.mark.slow
KILLS, STEPS = 20, 200
FILES = ("adapter/adapter_model.safetensors", "adapter_last/adapter_model.safetensors")


def start(arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "weft", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen) -> None:
    _, problems = process.communicate()
    assert process.returncode == 0, problems.decode()


def fresh(base: str, rows: str, root: Path) -> list[str]:
    settings = [
        f"base={base}",
        f"data.path={rows}/train.jsonl",
        f"data.valid_path={rows}/valid.jsonl",
        "data.max_length=128",
        f"steps={STEPS}",
        "eval.every=10",
        "checkpoint_every=5",
    ]
    return ["instruct", *settings, "--run-dir", str(root)]


def test_twenty_kills(small_base, rows_dir, tmp_path):
    """Each kill comes a few steps after the one before it, at a random moment of a step."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finished(start(fresh(small_base, rows_dir, whole)))
    chance = np.random.default_rng(0)
    steps: list[int] = []
    process = start(fresh(small_base, rows_dir, killed))
    while len(steps) < KILLS:
        wait_for(process, killed, max(steps, default=0) + int(chance.integers(1, STEPS // KILLS)))
        time.sleep(chance.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        steps.append(len(RunReader(killed).steps()))
        process = start(["--resume", str(killed)])
    finished(process)
    print(f"killed at steps {steps}")
    for name in FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    a, b = (RunReader(root) for root in (whole, killed))
    assert a.manifest.fingerprints["outcome"] == b.manifest.fingerprints["outcome"]
    assert losses(a) == losses(b)


def wait_for(process: subprocess.Popen, root: Path, step: int) -> None:
    while not (root / "steps.jsonl").exists() or len(RunReader(root).steps()) < step:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)


def losses(reader: RunReader) -> list[tuple[int, float]]:
    return [(step["step"], step["loss"]) for step in reader.steps()]
