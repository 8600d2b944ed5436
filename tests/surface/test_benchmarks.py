"""Every benchmark runs, with no table for contenders that differ."""

import sys
from dataclasses import replace

import pytest

from benchmarks import mezo_step, population, vllm_peer
from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.harness import alternate
from weft.core.errors import CheckFailed
from weft.model.objectives import OptionNLL


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch, tmp_path):
    """It takes half a minute to start; test_benchmarks_vllm.py starts it."""
    monkeypatch.setattr(vllm_peer, "ENVIRONMENT", tmp_path / "nowhere")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_quick_runs(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", name, "--quick"])
    assert main() == 0
    table = capsys.readouterr().out
    assert name in table


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
