"""Workers that are killed in mid-run, and the run that shares its members out over them: the final
adapter is byte for byte that of a run in one process that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from weft.runs.reader import RunReader

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="its extra is not installed")

STEPS = 24
GRADE = """
def reward(row, completion):
    return len(set(completion)) - abs(len(completion) - len(row["instruction"])) / 7
"""
RAY = ["engine.name=ray", "engine.workers=2", "engine.threads=1"]


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "weft", "train", *arguments]
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=threads, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finished(process: subprocess.Popen) -> None:
    _, problems = process.communicate(timeout=500)
    assert process.returncode == 0, problems.decode()


@pytest.fixture(scope="module")
def fresh(small_base, rows_dir, tmp_path_factory):
    file = tmp_path_factory.mktemp("reward") / "grade.py"
    file.write_text(GRADE)
    settings = [
        f"base={small_base}",
        f"data.path={rows_dir}/train.jsonl",
        f"data.valid_path={rows_dir}/valid.jsonl",
        "data.max_length=128",
        "adapter.rank=2",
        "adapter.dropout=0",
        "method.name=es",
        "method.population=8",
        "method.samples_per_generation=3",
        "method.noise.fraction=0.5",
        "objective.name=reward",
        f"objective.file={file}",
        "objective.decoding.max_tokens=16",
        "objective.decoding.temperature=0.9",
        "members_per_forward=3",
        f"steps={STEPS}",
        "eval.every=12",
        "checkpoint_every=4",
    ]
    return lambda root, *more: ["instruct", *settings, *more, "--run-dir", str(root)]


@pytest.fixture(scope="module")
def whole(fresh, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "whole"
    finished(start(*fresh(root)))
    return root


def wait_for(process: subprocess.Popen, root: Path, step: int) -> None:
    while not (root / "steps.jsonl").exists() or len(RunReader(root).steps()) < step:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.02)


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes of the workers of a run."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [child for child in below if "ray::Worker" in " ".join(child.cmdline())]


def same(a: Path, b: Path) -> None:
    for name in ("adapter/adapter_model.safetensors", "adapter_last/adapter_model.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    assert RunReader(a).evidence() == RunReader(b).evidence()
    assert len({tuple(line["rewards"]) for line in RunReader(a).evidence()}) > 5


def test_a_worker_that_is_killed_changes_nothing_and_is_told(fresh, whole, tmp_path):
    root = tmp_path / "killed"
    process = start(*fresh(root, *RAY))
    wait_for(process, root, 5)
    victim, other = workers(process)
    victim.kill()
    wait_for(process, root, 14)
    other.kill()
    finished(process)
    same(whole, root)
    told = [notice for notice in RunReader(root).manifest.notices if "is started again" in notice]
    assert len(told) == 2


def test_a_killed_run_goes_on_to_the_same_adapter_and_its_workers_go_with_it(
    fresh, whole, tmp_path
):
    root = tmp_path / "killed"
    process = start(*fresh(root, *RAY))
    wait_for(process, root, 10)
    below = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(below, timeout=120)  # Ray's agents look again now and then
    assert not [child.cmdline() for child in alive]
    process = start("--resume", str(root))
    finished(process)
    same(whole, root)


def test_ctrl_c_ends_a_run_after_its_step_with_its_workers(fresh, whole, tmp_path):
    root = tmp_path / "stopped"
    process = start(*fresh(root, *RAY))
    wait_for(process, root, 6)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    for worker in workers(process):  # a terminal tells all of them
        worker.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not [child.cmdline() for child in alive]
    assert RunReader(root).manifest.status == "interrupted"
    finished(start("--resume", str(root)))
    same(whole, root)
