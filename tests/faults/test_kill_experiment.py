"""An experiment killed at any moment ends with the adapters and scores of one left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.long]
KILLS, STEPS = 6, 30


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "weft", "experiment", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen) -> None:
    _, problems = process.communicate()
    assert process.returncode == 0, problems.decode()


def lines(root: Path) -> int:
    """Steps recorded by all arms."""
    return sum(len(path.read_bytes().splitlines()) for path in root.glob("arms/*/steps.jsonl"))


def outcome(root: Path) -> dict[str, bytes]:
    found = [*root.glob("arms/**/*.safetensors"), *root.glob("scores/*")]
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in found
        if "checkpoints" not in path.parts
    }


def test_kills(small_base, rows_dir, tmp_path):
    data = {"path": f"{rows_dir}/train.jsonl", "valid_path": f"{rows_dir}/valid.jsonl"}
    run = {
        "base": small_base,
        "data": data | {"max_length": 128},
        "adapter": {"rank": 1, "alpha": 16},
        "method": {"name": "mezo"},
        "batch_size": 2,
        "eval": {"every": 10},
        "checkpoint_every": 3,
    }
    boosted = {"boost.steps_per_iteration": 7}
    arms = {"mezo": {}, "boosted": boosted, "backprop": {"method.name": "backprop"}}
    source = tmp_path / "my.yaml"
    source.write_text(
        yaml.safe_dump({"run": run, "seeds": [0, 1], "budget": {"steps": STEPS}, "arms": arms})
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finished(start(str(source), "--out", str(whole)))
    chance = np.random.default_rng(0)
    process = start(str(source), "--out", str(killed))
    every = lines(whole) // (KILLS + 1)
    for kill in range(KILLS):
        while lines(killed) < (kill + 0.5) * every:
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        process = start("--resume", str(killed))
    finished(process)
    assert outcome(killed) == outcome(whole)
