"""Rewards to weights: on small tables whose answer is written out."""

import numpy as np
import pytest

from weft.methods.config import EsConfig
from weft.methods.shaping import shape

NAN = np.nan


def shaped(rewards, **config):
    reward_NE = np.array(rewards, dtype=float)
    config = EsConfig(population=len(reward_NE), antithetic=False, **config)
    return shape(config, reward_NE)


def test_zscore_is_the_distance_from_the_mean_in_population_deviations():
    found = shaped([[1.0, 3.0], [4.0, 4.0], [6.0, 6.0]], shaping="zscore")
    assert found.reward_N.tolist() == [2, 4, 6]
    assert found.weight_N == pytest.approx(np.array([-2, 0, 2]) / np.sqrt(8 / 3))


def test_ties_share_the_mean_of_their_ranks():
    found = shaped([[5.0], [1.0], [1.0], [1e9]])
    ranks = np.array([3, 1.5, 1.5, 4])
    assert found.weight_N == pytest.approx((ranks - 2.5) / ranks.std())
    assert found.ties == 0.5


@pytest.mark.parametrize("shaping", ["rank", "zscore"])
@pytest.mark.parametrize("per_prompt", [False, True])
def test_where_nobody_is_better_there_is_nothing_to_follow(shaping, per_prompt):
    found = shaped([[2.0, -1.0]] * 4, shaping=shaping, per_prompt=per_prompt)
    assert found.flat
    assert found.ties == 1


@pytest.mark.parametrize("shaping", ["rank", "zscore"])
def test_weights_sum_to_zero_and_have_deviation_one(shaping):
    rewards = np.random.default_rng(0).normal(size=(30, 16))
    found = shaped(rewards, shaping=shaping)
    assert found.weight_N.sum() == pytest.approx(0, abs=1e-12)
    assert found.weight_N.std() == pytest.approx(1)
    assert (np.argsort(found.weight_N) == np.argsort(rewards.mean(axis=1))).all()


def test_prompt_by_prompt_a_hard_prompt_says_as_much_as_an_easy_one():
    rewards = [[100.0, 0.1], [300.0, 0.0], [200.0, 0.2]]
    assert shaped(rewards).weight_N.argmax() == 1  # the large rewards decide
    weights = shaped(rewards, per_prompt=True).weight_N
    one = np.sqrt(1.5)  # ranks 1, 2, 3 in deviations
    assert weights == pytest.approx([(-one + 0) / 2, (one - one) / 2, (0 + one) / 2])


def test_prompt_by_prompt_zscores_are_centred_by_prompt_and_scaled_by_all():
    rewards = np.random.default_rng(1).normal(size=(6, 5)) * [1, 2, 3, 4, 5]
    centred = rewards - rewards.mean(axis=0)
    found = shaped(rewards, shaping="zscore", per_prompt=True)
    assert found.weight_N == pytest.approx((centred / centred.std()).mean(axis=1))


@pytest.mark.parametrize("shaping", ["rank", "zscore"])
def test_a_failed_completion_counts_as_the_worst_of_its_prompt(shaping):
    rewards = [[3.0, NAN], [2.0, 7.0], [1.0, 5.0]]
    found = shaped(rewards, shaping=shaping)
    assert found.reward_N.tolist() == [4.0, 4.5, 3.0]  # NaN is 5
    assert found.weight_N.argmax() == 1


@pytest.mark.parametrize("shaping", ["rank", "zscore"])
@pytest.mark.parametrize("per_prompt", [False, True])
def test_a_member_that_failed_altogether_is_last(shaping, per_prompt):
    found = shaped([[3.0], [NAN], [1.0], [2.0]], shaping=shaping, per_prompt=per_prompt)
    assert found.weight_N.argmin() == 1
    assert np.isfinite(found.weight_N).all()


def test_a_prompt_on_which_all_failed_counts_for_nobody():
    found = shaped([[NAN, 3.0], [NAN, 1.0]], shaping="zscore")
    assert found.weight_N.tolist() == [1, -1]
    assert shaped([[NAN], [NAN]]).flat
