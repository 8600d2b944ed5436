"""Every benchmark runs, with no table for contenders that differ."""

import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import breakdown, mezo_step, population, vllm_peer
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.harness import alternate
from weft.core.errors import CheckFailed
from weft.model.objectives import OptionNLL

SLOW = ("compile", "mlx_training", "recorder")


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch, tmp_path):
    """It takes half a minute to start; test_benchmarks_vllm.py starts it."""
    monkeypatch.setattr(vllm_peer, "ENVIRONMENT", tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in BENCHMARKS],
)
def test_quick_runs(name, monkeypatch, capsys):
    quick(monkeypatch, name, "--device", "cpu")
    assert name in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", [each.name for each in BENCHMARKS.values() if not each.only_cpu])
def test_quick_runs_on_a_gpu(name, monkeypatch, capsys):
    quick(monkeypatch, name, "--device", "cuda")
    assert f"{name}-cuda" in capsys.readouterr().out


def test_a_profile_names_everyone_and_every_kind_of_work(monkeypatch, capsys):
    quick(monkeypatch, "mezo_step", "--profile", "--device", "cpu")
    profile = capsys.readouterr().out.partition("seconds of one step")[2]
    assert all(kind in profile for kind in (*breakdown.KINDS, breakdown.OUTSIDE))


def quick(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", *arguments])
    assert main() == 0


def test_another_loss_voids_the_comparison():
    shape = mezo_step.SMALL
    contenders = mezo_step.contenders(shape)[-1:]
    other = lambda: mezo_step.weft_run(mezo_step.WeftMezo(shape, OptionNLL()))  # noqa: E731
    contenders.append(replace(contenders[0], name="other", build=other))
    measurements = alternate(contenders, mezo_step.random_batches(1, shape), rounds=1)
    with pytest.raises(CheckFailed, match="first losses"):
        mezo_step.check_first_losses(measurements)


def test_another_population_voids_the_comparison(monkeypatch):
    workload = population.WORKLOADS[0].small()
    fewer = lambda other: population.build_each(replace(other, members=2))  # noqa: E731
    monkeypatch.setitem(population.BUILDS, "peft_each", ("fewer", fewer))
    with pytest.raises(CheckFailed, match="peft_each and weft do not say the same"):
        population.check_same_tokens(workload)
