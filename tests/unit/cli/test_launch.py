"""`weft` under a launcher: what can be shared, and that one process speaks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from weft.cli import screen
from weft.runs.reader import RunReader

SECOND = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def second(monkeypatch):
    """This process is the second of two, and does not wait for the first."""
    for name, value in SECOND.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("weft.cli.launch.GRACE_SECONDS", 0)
    yield monkeypatch
    screen.hush(False)


def test_a_verb_that_gains_nothing_from_several_processes_says_so(second, cli):
    second.setenv("RANK", "0")
    said = cli("recipes")
    assert said.code == 2
    assert "`weft recipes` runs in one process, and this is one of 2" in said.err
    assert said.out == ""


@pytest.mark.parametrize("words", [("recipes",), ("train", "--nonsense")])
def test_the_other_processes_are_silent(words, second, cli):
    said = cli(*words)
    assert (said.code, said.out, said.err) == (2, "", "")


def test_an_environment_that_makes_no_sense_is_an_error_like_any_other(second, cli):
    second.setenv("RANK", "two")
    said = cli("train", "instruct")
    assert said.code == 2
    assert "RANK=two" in said.err


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--nproc-per-node", "2"),
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
}


def launched(launcher: str, port: int, *words: object) -> subprocess.Popen[str]:
    """`weft train` in two processes of a launcher."""
    module, *options = LAUNCHERS[launcher]
    places = ("--master_port" if launcher == "torchrun" else "--main_process_port", str(port))
    command = [sys.executable, "-m", module, *options, *places, "-m", "weft", "train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(run: Path, step: int) -> None:
    """Until a run has recorded a step."""
    for _ in range(1200):
        if (run / "steps.jsonl").exists() and len(list(RunReader(run).steps())) >= step:
            return
        time.sleep(0.1)
    raise AssertionError("the run does not get there")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_trains_and_one_process_speaks(launcher, settings, tmp_path, free_port):
    run = tmp_path / "run"
    process = launched(launcher, free_port(), "instruct", *settings, "--run-dir", run)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert len(re.findall("^step 6/6 ", said, re.MULTILINE)) == 1
    assert said.count("next: weft compare base") == 1
    manifest = RunReader(run).manifest
    assert (manifest.status, manifest.hardware["processes"]) == ("finished", 2)


@pytest.mark.slow
def test_a_problem_is_told_once_and_before_the_launcher_ends_the_rest(tmp_path, free_port):
    process = launched("torchrun", free_port(), "instruct", "stpes=3")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1  # torchrun's own, whatever the processes ended with
    assert said.count("no such key (did you mean `steps`?)") == 1
    assert "exitcode  : 2" in said
    assert "weft/" not in said  # a traceback of Weft's: torchrun prints one of its own


@pytest.mark.slow
def test_ctrl_c_reaches_all_and_the_run_goes_on_in_one_process(settings, tmp_path, free_port, cli):
    run = tmp_path / "run"
    long = [*settings, "steps=300", "eval.every=0", "keep=last"]
    process = launched("torchrun", free_port(), "instruct", *long, "--run-dir", run)
    wait_for(run, 5)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=300)
    stopped = re.findall(r"interrupted at step (\d+) of 300", said)
    assert len(stopped) == 1, said
    assert RunReader(run).manifest.status == "interrupted"
    assert len(list(RunReader(run).steps())) == int(stopped[0])
    assert cli("train", "--resume", run).code == 0
    steps = [line["step"] for line in RunReader(run).steps()]
    assert steps == list(range(1, 301))
    assert "resumed with another number of processes: 1, was 2" in RunReader(run).manifest.notices


@pytest.mark.slow
def test_a_killed_process_ends_the_run_in_words(settings, tmp_path, free_port):
    run = tmp_path / "run"
    long = [*settings, "steps=3000", "eval.every=0", "keep=last"]
    process = launched("torchrun", free_port(), "instruct", *long, "--run-dir", run)
    wait_for(run, 5)
    os.kill(_second_of(process.pid), signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    told = re.findall("^error: (another process of this run|this run was told)", said, re.MULTILINE)
    assert len(told) == 1, said
    assert "weft train --resume RUN" in said
    assert RunReader(run).manifest.status == "failed"


def _second_of(parent: int) -> int:
    """The child that is rank 1."""
    for entry in Path("/proc").iterdir():
        try:
            stat, environment = (entry / "stat").read_text(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if stat.rpartition(")")[2].split()[1] == str(parent) and b"\0RANK=1\0" in environment:
            return int(entry.name)
    raise AssertionError("there is no rank 1")
