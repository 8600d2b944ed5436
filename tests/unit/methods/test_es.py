"""Evolution strategies on functions with known rewards, and beside a plain loop."""

import numpy as np
import pytest
import torch

from weft.core.batch import Batch
from weft.core.errors import InputError
from weft.core.keys import Key
from weft.methods.config import BackpropConfig, EsConfig, NoiseConfig
from weft.methods.es import estimate, population_of, preflight, replay
from weft.methods.estimate import Graded, Point

P = 200


class Grader:
    """A scorer whose rewards are a function of the adapters, [N, P] to [N, E]."""

    def __init__(self, function):
        self.function = function

    def rewards(self, lane, population, batch, key):
        return Graded(self.function(population.members(range(population.size + 1)).double()))


def near_one(members_NP):
    return -((members_NP - 1) ** 2).sum(dim=1, keepdim=True).numpy()


def at(theta_LP, step=0, seed=0, noise=0.1):
    keys = [Key.of(seed + lane).fold("step", step) for lane in range(len(theta_LP))]
    batches = [Batch(())] * len(theta_LP)
    return Point(theta_LP, None, batches, keys, torch.full_like(theta_LP, noise), step)


def test_a_generation_is_the_published_update_written_as_a_loop():
    """theta += alpha * (1/N) * sum of z_n * eps_n, z by mean and population std."""
    config = EsConfig(population=8, antithetic=False, shaping="zscore")
    theta_LP = torch.linspace(-1, 1, P)[None]
    point = at(theta_LP)
    found = estimate(config, point, Grader(near_one))
    rewards, noises = [], []
    for n in range(8):
        member_P = population_of(config, point, 0).members([n])[0].double()
        noises.append((member_P - theta_LP[0]) / 0.1)
        rewards.append(-float(((member_P - 1) ** 2).sum()))
    z = (np.array(rewards) - np.mean(rewards)) / np.std(rewards)
    step_P = sum(z_n * eps_P for z_n, eps_P in zip(z, noises, strict=True)) / 8
    torch.testing.assert_close(-found.direction_LP[0].double(), step_P, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("shaping", ["rank", "zscore"])
def test_it_climbs_to_where_the_reward_is(antithetic, shaping):
    config = EsConfig(population=20, antithetic=antithetic, shaping=shaping)
    theta_LP = torch.zeros(2, P) + 0.01
    start = near_one(theta_LP)[:, 0]
    for step in range(150):
        point = at(theta_LP, step)
        found = estimate(config, point, Grader(near_one))
        theta_LP = theta_LP - 0.5 * 0.1 * found.direction_LP
    assert (near_one(theta_LP)[:, 0] > start * 0.35).all()


def test_the_first_generation_may_be_wider_and_its_update_with_it():
    noise = NoiseConfig(space="fixed", sigma=0.1, init_scale=4.0, perturb_scale=0.5)
    config = EsConfig(population=4, antithetic=False, noise=noise)
    theta_LP = torch.ones(1, P)
    spreads = [
        float((population_of(config, at(theta_LP, step), 0).members(range(4)) - 1).std())
        for step in (0, 1)
    ]
    assert spreads == pytest.approx([0.4, 0.05], rel=0.1)
    weights = [{"weights": [1.0, 0, 0, 0]}]
    first = replay(config, at(theta_LP, 0), weights)
    member_P = population_of(config, at(theta_LP, 0), 0).members([0])[0]
    torch.testing.assert_close(-first[0] * 0.1, (member_P - 1) / 4, atol=1e-6, rtol=1e-4)


def test_the_evidence_replays_the_direction_bit_for_bit():
    config = EsConfig(population=6)
    point = at(torch.zeros(3, P) + 0.5)
    found = estimate(config, point, Grader(near_one))
    assert torch.equal(replay(config, point, found.evidence), found.direction_LP)
    assert all(len(line["rewards"]) == 6 for line in found.evidence)


def test_lanes_do_not_mix():
    config = EsConfig(population=6)
    theta_LP = torch.stack([torch.zeros(P) + 0.5, torch.linspace(0, 1, P)])
    together = estimate(config, at(theta_LP), Grader(near_one))
    alone = estimate(config, at(theta_LP).part(1, 2), Grader(near_one))
    assert torch.equal(together.direction_LP[1:], alone.direction_LP)


def test_what_may_not_move_has_no_noise():
    config = EsConfig(population=4)
    point = at(torch.ones(1, P))
    free_LP = torch.ones(1, P)
    free_LP[:, : P // 2] = 0
    point = Point(point.theta_LP, free_LP, point.batches, point.keys, point.noise_LP, 0)
    members_NP = population_of(config, point, 0).members(range(4))
    assert (members_NP[:, : P // 2] == 1).all()
    assert (estimate(config, point, Grader(near_one)).direction_LP[:, : P // 2] == 0).all()


def test_the_loss_is_minus_the_centre_s_reward_and_not_the_luckiest_member_s():
    config = EsConfig(population=4)
    found = estimate(config, at(torch.ones(1, P)), Grader(near_one))
    assert found.loss_L == (0.0,)
    assert found.stats["reward_best"][0] < 0


def test_failures_are_counted_and_a_generation_of_failures_moves_nothing():
    config = EsConfig(population=4)

    def half(members_NP):
        reward_NE = near_one(members_NP)
        reward_NE[1] = np.nan
        return reward_NE

    found = estimate(config, at(torch.zeros(1, P)), Grader(half))
    assert found.stats["failed"] == (1.0,)
    assert np.argmin(found.evidence[0]["weights"]) == 1
    nothing = estimate(
        config, at(torch.zeros(1, P)), Grader(lambda m: np.full((len(m), 3), np.nan))
    )
    assert nothing.stats["flat"] == (1.0,)
    assert not nothing.direction_LP.any()
    assert nothing.evidence[0]["rewards"] == [None] * 4


def test_an_epoch_may_end_within_a_generation():
    """1,600 rows by 128 are 12.5 generations: two epochs are 25, and not 26."""
    config = EsConfig(samples_per_generation=128)
    assert config.steps(4, 1600, 2) == 25
    assert EsConfig().steps(4, 1600, 2) == 2
    assert BackpropConfig().steps(128, 1600, 2) == 26


def test_a_zero_centre_is_a_saddle():
    zero = at(torch.zeros(1, P))
    with pytest.raises(InputError, match="both members of a pair are the same"):
        preflight(EsConfig(), zero, None)
    found = preflight(EsConfig(antithetic=False), zero, None)
    assert "the first updates are noise" in found.warning
    assert preflight(EsConfig(), at(torch.ones(1, P)), None) is None


def factors(theta_P):
    return theta_P[..., :96].reshape(-1, 4, 24), theta_P[..., 96:].reshape(-1, 16, 4)


def test_around_zero_pairs_tie_exactly_and_learn_nothing():
    """f(A, B) = f(-A, -B): a rank-4 regression, from A = B = 0 and from a random A."""
    target = (
        torch.randn(16, 4, generator=torch.Generator().manual_seed(0)).double()
        @ torch.randn(4, 24, generator=torch.Generator().manual_seed(1)).double()
    )

    def fit(members_NP):
        a, b = factors(members_NP)
        return -((b @ a - target) ** 2).mean(dim=(1, 2)).numpy()[:, None]

    def after(theta_P, antithetic, steps=200):
        theta_LP = theta_P[None]
        config = EsConfig(population=30, antithetic=antithetic)
        for step in range(steps):
            found = estimate(config, at(theta_LP, step, noise=0.1), Grader(fit))
            theta_LP = theta_LP - 0.5 * 0.1 * found.direction_LP
        return float(fit(theta_LP.double())[0, 0])

    zero, random = torch.zeros(160), torch.zeros(160)
    random[:96] = torch.rand(96, generator=torch.Generator().manual_seed(2)) - 0.5
    nothing = float(fit(zero[None].double())[0, 0])
    assert after(zero, antithetic=True) == nothing
    assert after(zero, antithetic=False) > nothing * 0.8  # noise leads away from the saddle
    assert after(random, antithetic=True) > nothing * 0.5
