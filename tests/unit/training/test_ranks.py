"""Two processes that divide the examples train what one process trains, and end together."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from weft.runs.reader import RunReader
from weft.training.train import resume, train

SCRIPT = Path(__file__).with_name("rank_cases.py")
_spec = importlib.util.spec_from_file_location("rank_cases", SCRIPT)
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)
KILLED = -9


@pytest.fixture(scope="module")
def two(
    tmp_path_factory: pytest.TempPathFactory, small_base: str, rows_dir: str, free_port: Any
) -> Callable[..., Path]:
    """Where two processes did one of the methods of `Attempts`; they end with these codes."""

    def start(what: str, *codes: int) -> Path:
        root = tmp_path_factory.mktemp("ranks")
        environment = os.environ | {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": "1",
        }
        processes = [
            subprocess.Popen(
                [sys.executable, str(SCRIPT), what, small_base, rows_dir, str(root)],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        said = "\n".join(process.communicate(timeout=500)[0] for process in processes)
        assert [process.returncode for process in processes] == list(codes), said
        return root

    return start


@pytest.fixture(scope="module")
def quick(two: Callable[..., Path]) -> Path:
    """What is tested every time."""
    return two("quick", 0, 0)


@pytest.fixture(scope="module")
def thorough(two: Callable[..., Path]) -> Path:
    """What takes longer."""
    return two("thorough", 0, KILLED)


def found(root: Path, name: str, ranks: int = 2) -> list[dict[str, Any]]:
    """What came of an attempt, in each rank."""
    return [json.loads((root / f"{name}.{rank}.json").read_text()) for rank in range(ranks)]


def told_once(root: Path, name: str) -> str:
    """The problem with which all ranks ended, and which one of them told."""
    each = found(root, name)
    told = [problem for its in each for problem in its["told"]]
    assert len(told) == 1
    return told[0]


def test_what_is_sent_arrives_in_every_rank_alike(quick):
    first, second = found(quick, "exchange")
    assert first == second
    assert first["value"] == {
        "sum": [3.0, 30.0],
        "sums": [[0.2, 2.0]],
        "any": [True, False],
        "gather": ["", "éé"],
        "of_first": "from 0",
        "nothing": "",
    }


def test_an_error_of_one_rank_ends_all_with_its_words_and_code(quick):
    assert told_once(quick, "wrong") == "rank 1 of 2: there is no such file here"
    first, second = found(quick, "wrong")
    assert first["told"] and not second["told"]
    assert first["code"] == second["code"] == 2


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All that a run wrote as adapters."""
    files = sorted(run.rglob("adapter*/*.safetensors"))
    return {
        f"{file.relative_to(run)}: {name}": tensor
        for file in files
        for name, tensor in load_file(file).items()
    }


def lines(run: Path) -> list[list[float]]:
    """The numbers of every step, but for its time."""
    numbers = ("loss", "loss_perturbed", "lr", "grad_norm", "update_norm", "tokens", "slope")
    return [[line[n] for n in numbers if n in line] for line in RunReader(run).steps()]


def same(one: Path, other: Path) -> None:
    """Two runs are one, to rounding."""
    first, second = lines(one), lines(other)
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a[0] == pytest.approx(b[0], rel=1e-6)  # losses
        assert a == pytest.approx(b, rel=1e-4)
    theta, again = weights(one), weights(other)
    assert theta.keys() == again.keys()
    for name, tensor in theta.items():
        assert (tensor - again[name]).norm() <= 1e-5 * tensor.norm(), name
    reader, other_reader = RunReader(one), RunReader(other)
    assert reader.result_names() == other_reader.result_names()
    for name in reader.result_names():
        if name.startswith("eval"):
            a, b = (its.results(name) for its in (reader, other_reader))
            assert a["eval_loss"] == pytest.approx(b["eval_loss"], rel=1e-6)
            assert (a["step"], a.get("commits")) == (b["step"], b.get("commits"))


@pytest.mark.parametrize("name", cases.QUICK)
def test_a_divided_batch_trains_what_a_whole_one_does(name, quick, small_base, rows_dir, tmp_path):
    train(cases.resolved(small_base, rows_dir, *cases.CASES[name]), tmp_path / "alone")
    same(tmp_path / "alone", quick / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.THOROUGH)
def test_so_does_every_kind_of_run(name, thorough, small_base, rows_dir, tmp_path):
    train(cases.resolved(small_base, rows_dir, *cases.CASES[name]), tmp_path / "alone")
    same(tmp_path / "alone", thorough / name)


def test_the_manifest_says_how_many_processes_there_were(quick):
    for name in cases.QUICK:
        assert RunReader(quick / name).manifest.hardware["processes"] == 2


@pytest.mark.slow
def test_ctrl_c_in_one_rank_stops_all_after_the_same_step(thorough):
    assert [its["value"] for its in found(thorough, "stopped")] == [cases.STOPPED_AT] * 2


@pytest.mark.slow
def test_resumed_ranks_end_where_undisturbed_ones_do(thorough, small_base, rows_dir, tmp_path):
    assert [its["value"] for its in found(thorough, "went on")] == [12, 12]
    train(cases.resolved(small_base, rows_dir, *cases.LONG), tmp_path / "alone")
    same(tmp_path / "alone", thorough / "stopped")
    assert not RunReader(thorough / "stopped").manifest.notices[len(notices(tmp_path / "alone")) :]


def notices(run: Path) -> tuple[str, ...]:
    return RunReader(run).manifest.notices


@pytest.mark.slow
def test_a_rank_that_differs_in_a_fact_is_named(thorough):
    assert told_once(thorough, "unlike") == "rank 1 of 2 differs from rank 0 in b"
    assert [its["code"] for its in found(thorough, "unlike")] == [1, 1]


@pytest.mark.slow
def test_es_is_refused(thorough):
    assert told_once(thorough, "es") == "es runs in one process, and this is one of 2"
    assert not (thorough / "es").exists()


@pytest.mark.slow
def test_a_directory_that_holds_a_run_is_refused_once(thorough):
    problem = told_once(thorough, "occupied")
    assert problem == f"the directory {thorough / 'backprop'} holds a run"
    assert [its["code"] for its in found(thorough, "occupied")] == [2, 2]


@pytest.mark.slow
def test_a_run_that_diverges_ends_in_all_ranks_and_is_told_once(thorough):
    assert "gradient norm" in told_once(thorough, "diverged")
    assert [its["code"] for its in found(thorough, "diverged")] == [1, 1]
    manifest = RunReader(thorough / "diverged").manifest
    assert manifest.status == "failed"
    assert (thorough / "diverged/checkpoints").exists()


@pytest.mark.slow
def test_the_rank_that_is_left_says_so_and_one_process_goes_on(
    thorough, small_base, rows_dir, tmp_path
):
    (left,) = found(thorough, "killed", ranks=1)
    assert left["code"] == 1
    assert left["told"] == [left["problem"]]
    assert "another process of this run has ended without a word" in left["problem"]
    run = thorough / "killed"
    assert RunReader(run).manifest.status == "failed"
    assert resume(run).step == 12
    train(cases.resolved(small_base, rows_dir, *cases.LONG), tmp_path / "alone")
    same(tmp_path / "alone", run)
    assert "resumed with another number of processes: 1, was 2" in notices(run)
