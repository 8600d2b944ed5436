"""Intervals against scipy, against closed forms, and by how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from weft.analysis import statistics
from weft.analysis.statistics import Interval, accuracy_interval, bootstrap, paired_bootstrap
from weft.core.keys import Key

KEY = Key.of(0)


@pytest.fixture
def losses():
    """Loss sums and token counts of two models on the same 60 examples; b is 0.2 better."""
    rng = Key.of(1).numpy()
    counts = rng.integers(1, 40, size=60)
    hardness = rng.gamma(4.0, 0.5, size=60)
    a = (hardness + rng.normal(0, 0.2, size=60)) * counts
    b = (hardness - 0.2 + rng.normal(0, 0.2, size=60)) * counts
    return a, counts, b, counts


def ratio_difference(sum_a, count_a, sum_b, count_b, axis=-1):
    return sum_b.sum(axis) / count_b.sum(axis) - sum_a.sum(axis) / count_a.sum(axis)


def perplexity_difference(sum_a, count_a, sum_b, count_b, axis=-1):
    a, b = sum_a.sum(axis) / count_a.sum(axis), sum_b.sum(axis) / count_b.sum(axis)
    return np.exp(b) - np.exp(a)


@pytest.mark.parametrize(
    ("of", "statistic"), [(np.asarray, ratio_difference), (np.exp, perplexity_difference)]
)
def test_paired_bootstrap_matches_scipy(losses, of, statistic):
    ours = paired_bootstrap(*losses, KEY, resamples=20_000, of=of)
    theirs = stats.bootstrap(
        losses,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.estimate == pytest.approx(statistic(*losses))
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_pairing_removes_what_both_models_find_hard(losses):
    sum_a, count, sum_b, _ = losses
    paired = paired_bootstrap(*losses, KEY)
    each = [bootstrap(s, count, KEY) for s in (sum_a, sum_b)]
    assert paired.excludes_zero
    assert paired.high - paired.low < min(i.high - i.low for i in each) / 2


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    values = Key.of(2).numpy().normal(3.0, 2.0, size=400)
    interval = bootstrap(values, np.ones(400), KEY, resamples=20_000)
    low, high = stats.norm.interval(0.95, loc=values.mean(), scale=values.std() / np.sqrt(400))
    assert interval.estimate == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.02)


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = 0
    for trial in range(300):
        rng = Key.of(3).fold(trial).numpy()
        counts = rng.integers(5, 50, size=80)
        base = rng.gamma(4.0, 0.5, size=80)
        a, b = (base + rng.normal(shift, 0.3, size=80) for shift in (0.0, 0.2))
        interval = paired_bootstrap(a * counts, counts, b * counts, counts, KEY, resamples=400)
        held += interval.low <= 0.2 <= interval.high
    assert 0.90 < held / 300 < 0.98


def test_the_key_decides_and_chunks_do_not(losses, monkeypatch):
    first = paired_bootstrap(*losses, KEY)
    assert paired_bootstrap(*losses, KEY) == first
    assert paired_bootstrap(*losses, Key.of(9)) != first
    monkeypatch.setattr(statistics, "_CELLS", 1000)
    assert paired_bootstrap(*losses, KEY) == first


def test_a_higher_level_is_wider(losses):
    narrow, wide = (paired_bootstrap(*losses, KEY, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_equal_models_differ_by_exactly_nothing(losses):
    sums, counts, _, _ = losses
    assert paired_bootstrap(sums, counts, sums, counts, KEY) == Interval(0.0, 0.0, 0.0)


def test_without_enough_finite_examples_there_is_no_interval():
    one = paired_bootstrap([2.0], [1], [3.0], [1], KEY)
    assert one.estimate == 1.0 and np.isnan([one.low, one.high]).all()
    assert not one.excludes_zero
    for sums, counts in (([], []), ([1.0, np.nan], [1, 1]), ([0.0, 0.0], [0, 0])):
        none = bootstrap(sums, counts, KEY)
        assert np.isnan([none.low, none.high, none.estimate]).all()


def test_examples_in_which_nothing_was_counted_do_not_matter(losses):
    padded = [np.append(column, 0) for column in losses]
    assert paired_bootstrap(*padded, KEY) == paired_bootstrap(*losses, KEY)


def test_accuracy_interval_is_wilsons():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263
    interval = accuracy_interval(81, 263)
    assert interval.estimate == 81 / 263
    assert (interval.low, interval.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert accuracy_interval(0, 20).low == 0.0
    assert accuracy_interval(0, 20).high == pytest.approx(0.1611, abs=5e-5)
    assert np.isnan(accuracy_interval(0, 0).estimate)
