"""A run whose members are graded by Ray's workers is the run that one process makes."""

import json
import sys
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from weft.core.errors import EngineError, InputError
from weft.engines.config import RayConfig
from weft.engines.registry import CREWS
from weft.runs.reader import RunReader
from weft.training.config import RunConfig
from weft.training.resolve import resolve
from weft.training.train import train

GRADE = """
def reward(row, completion):
    return len(set(completion)) - abs(len(completion) - len(row["instruction"])) / 7
"""
FILES = ("adapter/adapter_model.safetensors", "adapter_last/adapter_model.safetensors")
GREEDY = "objective.decoding.temperature=0"


@pytest.fixture(scope="module")
def evolving(small_base, rows_dir, tmp_path_factory):
    """A short run with a reward of its own, with overrides."""
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
        "objective.decoding.max_tokens=8",
        "objective.decoding.temperature=0.9",
        "members_per_forward=3",
        "steps=3",
        "eval.every=2",
        "checkpoint_every=2",
    ]
    return lambda *more: resolve("instruct", [*settings, *more])


def same(a: Path, b: Path) -> None:
    """Adapters byte for byte, rewards, and all that a step recorded but its time."""
    for name in FILES:
        assert (a / name).read_bytes() == (b / name).read_bytes()
    one, other = RunReader(a), RunReader(b)
    assert one.evidence() == other.evidence()
    assert len({tuple(line["rewards"]) for line in one.evidence()}) > 1

    def untimed(reader):
        return [{k: v for k, v in each.items() if k != "seconds"} for each in reader.steps()]

    assert untimed(one) == untimed(other)


def test_two_workers_come_to_the_very_same_adapter_and_nothing_stays_running(evolving, tmp_path):
    pytest.importorskip("ray", reason="its extra is not installed")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    train(evolving(), alone)
    train(evolving("engine.name=ray", "engine.workers=2", "engine.threads=1"), shared)
    same(alone, shared)
    phases = json.loads((shared / "results/time_breakdown.json").read_text())["phases"]
    assert {"server launch", "loading", "evaluation"} <= {phase["name"] for phase in phases}
    left = [c for c in psutil.Process().children(recursive=True) if c.pid not in before]
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not [child.cmdline() for child in alive]


@pytest.mark.slow
def test_greedy_completions_are_the_same_too(evolving, tmp_path):
    pytest.importorskip("ray", reason="its extra is not installed")
    train(evolving(GREEDY), tmp_path / "alone")
    train(evolving(GREEDY, "engine.name=ray", "engine.threads=1"), tmp_path / "shared")
    same(tmp_path / "alone", tmp_path / "shared")


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="the ray engine needs the package ray") as error:
        CREWS["ray"](RayConfig(), None, None, print)
    assert error.value.hint == "pip install 'weft[ray]'"


def test_a_cluster_that_is_not_there_is_an_error(evolving, tmp_path):
    pytest.importorskip("ray", reason="its extra is not installed")
    settings = "engine.name=ray", "engine.address=127.0.0.1:1"
    with pytest.raises(EngineError, match="there is no Ray cluster"):
        train(evolving(*settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def config(**settings):
    return RunConfig.model_validate({"data": {"task": "conciseness"}, "steps": 1, **settings})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": {"name": "mezo"}}, "ray shares out the populations of `es`"),
        (
            {"method": {"name": "es"}, "engine": {"name": "ray", "over": {"name": "vllm"}}},
            "`engine.name` vllm samples completions, and `objective.name` nll is a loss",
        ),
    ],
)
def test_what_workers_cannot_do_is_said_before_anything_is_loaded(settings, said):
    with pytest.raises(ValidationError, match=said):
        config(**{"engine": {"name": "ray"}, **settings})


def test_losses_can_be_shared_out_where_workers_compute_themselves():
    assert config(method={"name": "es"}, engine={"name": "ray"}).engine == RayConfig()
