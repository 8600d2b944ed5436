"""What every entry of `METHODS` promises. A new method is tested by being in the dict."""

from typing import get_args

import pytest
import torch

from weft.core.keys import Key
from weft.engines.scorer import LocalScorer
from weft.methods.config import MethodConfig
from weft.methods.registry import METHODS
from weft.model.config import AdapterConfig
from weft.model.sites import choose_sites

CONFIGS = {
    kind.model_fields["name"].default: kind() for kind in get_args(MethodConfig) or (MethodConfig,)
}


@pytest.fixture
def engine(make_base):
    base = make_base("llama")
    return LocalScorer(base, choose_sites(base.sites, AdapterConfig(rank=2)))


def theta(engine, lanes):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(lanes, engine.layout.size, generator=generator) * 0.1


def estimate(name, engine, theta_LP, batches, seed=0):
    keys = [Key.of(seed + lane) for lane in range(len(batches))]
    return METHODS[name](CONFIGS[name], theta_LP, batches, keys, engine)


def test_every_method_has_a_configuration_and_the_other_way_round():
    assert set(METHODS) == set(CONFIGS)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_same_key_same_direction(name, engine, make_batch):
    theta_LP, batches = theta(engine, 1), [make_batch(0)]
    first, second = (estimate(name, engine, theta_LP, batches) for _ in range(2))
    assert torch.equal(first.direction_LP, second.direction_LP)
    assert first.loss_L == second.loss_L


@pytest.mark.parametrize("name", sorted(METHODS))
def test_theta_is_not_written(name, engine, make_batch):
    theta_LP = theta(engine, 1)
    before_LP = theta_LP.clone()
    estimate(name, engine, theta_LP, [make_batch(0)])
    assert torch.equal(theta_LP, before_LP)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_lanes_do_not_mix(name, engine, make_batch):
    theta_LP, batches = theta(engine, 2), [make_batch(0), make_batch(1)]
    together = estimate(name, engine, theta_LP, batches)
    for lane in range(2):
        alone = estimate(name, engine, theta_LP[lane : lane + 1], batches[lane : lane + 1], lane)
        torch.testing.assert_close(
            together.direction_LP[lane], alone.direction_LP[0], rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize("name", sorted(METHODS))
def test_going_against_the_direction_lowers_the_loss(name, engine, make_batch):
    theta_LP, batches = theta(engine, 1), [make_batch(0)]
    start = None
    for _ in range(20):
        found = estimate(name, engine, theta_LP, batches)
        start = start or found.loss_L[0]
        theta_LP = theta_LP - 0.05 * found.direction_LP
    assert estimate(name, engine, theta_LP, batches).loss_L[0] < start
