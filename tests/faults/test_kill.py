"""A training process killed at any moment loses nothing: the final adapter is byte for byte that
of a run that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weft.runs.reader import RunReader

pytestmark = pytest.mark.slow
BOOSTED = [
    "method.name=mezo",
    "adapter.rank=1",
    "adapter.dropout=0",
    "optimiser.name=sgd",
    "optimiser.momentum=0.9",
    "optimiser.lr=1e-2",
    "boost.optimiser=keep",
    "boost.warmup_steps=3",
    "boost.layers_per_round=2",
    "boost.shrinkage=0.9",
]
REWARD = Path(__file__).parents[1] / "support" / "reward_of_length.py"
POPULATION = [
    "method.name=es",
    "method.population=4",
    "method.samples_per_generation=3",
    "adapter.dropout=0",
    "optimiser.momentum=0.9",
    "optimiser.weight_decay=0.01",
    "objective.name=reward",
    f"objective.file={REWARD}",
    "objective.decoding.max_tokens=4",
    "objective.decoding.temperature=1.0",
]
CASES = {
    "backprop": (5, 80, []),
    "backprop, 20 kills": (20, 200, []),
    "boosted mezo": (4, 200, [*BOOSTED, "boost.steps_per_iteration=7"]),
    "boosted mezo, on a plateau": (
        4,
        200,
        [*BOOSTED, "boost.plateau.patience=1", "optimiser.lr=0.1"],
    ),
    "es": (4, 48, POPULATION),
}
"""How often the run is killed, how many steps it has, and its settings."""

FILES = ("adapter/adapter_model.safetensors", "adapter_last/adapter_model.safetensors")


def start(arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "weft", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen) -> None:
    _, problems = process.communicate()
    assert process.returncode == 0, problems.decode()


def fresh(base: str, rows: str, root: Path, steps: int, more: list[str]) -> list[str]:
    settings = [
        f"base={base}",
        f"data.path={rows}/train.jsonl",
        f"data.valid_path={rows}/valid.jsonl",
        "data.max_length=128",
        f"steps={steps}",
        "eval.every=10",
        "checkpoint_every=5",
    ]
    return ["instruct", *settings, *more, "--run-dir", str(root)]


LONG = ("backprop, 20 kills", "boosted mezo", "boosted mezo, on a plateau")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.long if c in LONG else ()) for c in CASES]
)
def test_many_kills(case, small_base, rows_dir, tmp_path):
    """Each kill comes a few steps after the one before it, at a random moment of a step."""
    kills, count, settings = CASES[case]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finished(start(fresh(small_base, rows_dir, whole, count, settings)))
    chance = np.random.default_rng(0)
    steps: list[int] = []
    process = start(fresh(small_base, rows_dir, killed, count, settings))
    while len(steps) < kills:
        wait_for(process, killed, max(steps, default=0) + int(chance.integers(1, count // kills)))
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
    assert untimed(a.steps()) == untimed(b.steps())
    assert a.evidence() == b.evidence()
    assert rounds(a) == rounds(b)
    assert bool(rounds(a)) == case.startswith("boosted")


def wait_for(process: subprocess.Popen, root: Path, step: int) -> None:
    while not (root / "steps.jsonl").exists() or len(RunReader(root).steps()) < step:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)


def untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in each.items() if k != "seconds"} for each in records]


def rounds(reader: RunReader) -> list[dict[str, Any]]:
    """How rounds of boosting ended."""
    ends = (each for each in reader.manifest.events if each["kind"] in ("commit", "restart"))
    return [{k: v for k, v in each.items() if k != "time"} for each in ends]
