"""What every entry of `METHODS` promises. A new method is tested by being in the dict."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from weft.core.keys import Key
from weft.engines.local import LocalEngine
from weft.engines.population import Alone
from weft.engines.scorer import LocalScorer
from weft.methods.config import MethodConfig
from weft.methods.estimate import AT_THETA, PERTURBED, Estimate, Point
from weft.methods.registry import METHODS
from weft.model.config import AdapterConfig
from weft.model.objectives import TOKENS
from weft.model.sites import choose_sites

CONFIGS = {
    kind.model_fields["name"].default: kind() for kind in get_args(get_args(MethodConfig)[0])
}


class Counting:
    """A scorer that counts the adapters it is asked for; a gradient is a forward and a backward."""

    def __init__(self, scorer):
        self.scorer, self.passes, self.clock = scorer, 0, scorer.clock

    def losses(self, theta_LMP, batches):
        self.passes += theta_LMP.shape[1]
        return self.scorer.losses(theta_LMP, batches)

    def gradient(self, theta_LP, batches, keys):
        self.passes += 2
        return self.scorer.gradient(theta_LP, batches, keys)

    def rewards(self, lane, population, batch, key):
        self.passes += population.size + 1
        return self.scorer.rewards(lane, population, batch, key)


@pytest.fixture
def scorer(make_base):
    base = make_base("llama")
    layout = choose_sites(base.sites, AdapterConfig(rank=2))
    return LocalScorer(base, layout, crew=Alone(LocalEngine(base), layout, TOKENS))


def theta(scorer, lanes):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(lanes, scorer.layout.size, generator=generator) * 0.1


def point(scorer, batches, *, lanes=1, step=0):
    keys = [Key.of(lane).fold("step", step) for lane in range(lanes)]
    theta_LP = theta(scorer, lanes)
    return Point(theta_LP, None, batches, keys, torch.full_like(theta_LP, 0.01), step)


def half(size):
    """Every other parameter may move."""
    return (torch.arange(size) % 2).float()[None]


def estimate(name, at, scorer):
    return METHODS[name].estimate(CONFIGS[name], at, scorer)


def test_every_method_has_a_configuration_and_the_other_way_round():
    assert set(METHODS) == set(CONFIGS)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_same_key_same_direction(name, scorer, make_batch):
    at = point(scorer, [make_batch(0)])
    first, second = (estimate(name, at, scorer) for _ in range(2))
    assert torch.equal(first.direction_LP, second.direction_LP)
    assert first.loss_L == second.loss_L


@pytest.mark.parametrize("name", sorted(METHODS))
def test_theta_is_not_written(name, scorer, make_batch):
    at = point(scorer, [make_batch(0)])
    before_LP = at.theta_LP.clone()
    found = estimate(name, at, scorer)
    assert torch.equal(at.theta_LP, before_LP)
    assert not at.theta_LP.requires_grad
    assert not found.direction_LP.requires_grad


@pytest.mark.parametrize("name", sorted(METHODS))
def test_lanes_do_not_mix(name, scorer, make_batch):
    at = point(scorer, [make_batch(0), make_batch(1)], lanes=2)
    together = estimate(name, at, scorer)
    for lane in range(2):
        alone = estimate(name, at.part(lane, lane + 1), scorer)
        found_P, expected_P = together.direction_LP[lane], alone.direction_LP[0]
        assert (found_P - expected_P).norm() < 2e-3 * expected_P.norm()
        assert together.loss_L[lane] == pytest.approx(alone.loss_L[0], rel=1e-6)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_may_not_move_has_no_direction_and_the_rest_has_its_own(name, scorer, make_batch):
    at = point(scorer, [make_batch(0)])
    free_LP = half(scorer.layout.size)
    found_LP = estimate(name, replace(at, free_LP=free_LP), scorer).direction_LP
    assert not found_LP[free_LP == 0].any()
    assert found_LP[free_LP == 1].any()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_loss_that_is_called_theta_s_is_that_at_theta(name, scorer, make_batch):
    at = point(scorer, [make_batch(0)])
    found = estimate(name, at, scorer)
    assert found.loss_name in (AT_THETA, PERTURBED)
    if found.loss_name == AT_THETA:
        here = scorer.losses(at.theta_LP[:, None], at.batches)[0, 0]
        assert found.loss_L[0] == pytest.approx(here, rel=1e-6)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_forwards_are_the_passes_that_a_step_takes(name, scorer, make_batch):
    counting = Counting(scorer)
    estimate(name, point(scorer, [make_batch(0)]), counting)
    assert counting.passes == CONFIGS[name].forwards


@pytest.mark.parametrize("name", sorted(METHODS))
def test_an_estimate_is_the_sum_of_its_lanes(name, scorer, make_batch):
    at = point(scorer, [make_batch(0), make_batch(1)], lanes=2)
    whole = estimate(name, at, scorer)
    again = Estimate.together([whole.part(0, 1), whole.part(1, 2)])
    assert torch.equal(again.direction_LP, whole.direction_LP)
    assert (again.loss_L, again.stats, again.evidence) == (
        whole.loss_L,
        dict(whole.stats),
        whole.evidence,
    )


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.replay])
def test_a_direction_is_replayed_from_its_evidence_alone(name, scorer, make_batch):
    at = point(scorer, [make_batch(0), make_batch(1)], lanes=2)
    found = estimate(name, at, scorer)
    replayed = METHODS[name].replay(CONFIGS[name], replace(at, batches=()), found.evidence)
    assert torch.equal(replayed, found.direction_LP)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_going_against_the_direction_lowers_the_loss(name, scorer, make_batch):
    batch, at = make_batch(0), point(scorer, [make_batch(0)])
    before = scorer.losses(at.theta_LP[:, None], [batch])[0, 0]
    for step in range(20):
        now = replace(at, keys=point(scorer, [batch], step=step).keys)
        direction_LP = estimate(name, now, scorer).direction_LP
        size = direction_LP.norm() / at.theta_LP.norm()  # steps of any method are as long
        at = replace(at, theta_LP=at.theta_LP - 0.01 * direction_LP / size)
    assert scorer.losses(at.theta_LP[:, None], [batch])[0, 0] < before
