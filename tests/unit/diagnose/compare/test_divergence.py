"""Divergences against SciPy, and what they refuse to make a number of."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from weft.diagnose.compare.divergence import (
    divergence,
    fit,
    perplexity,
    relative,
    truncated_kl,
)


def drawn(seed: int, spread: float) -> np.ndarray:
    """Logits [2, 3, 7] of two sides."""
    return spread * np.random.default_rng(seed).standard_normal((2, 3, 7))


@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(5))
def test_divergences_are_those_of_scipy(seed: int, spread: float) -> None:
    a, b = drawn(seed, spread)
    p, q = softmax(a, axis=1), softmax(b, axis=1)
    found = divergence(a, b)
    np.testing.assert_allclose(found.kl, entropy(p, q, axis=1), atol=1e-9)
    np.testing.assert_allclose(found.reverse, entropy(q, p, axis=1), atol=1e-9)
    middle = (p + q) / 2
    js = (entropy(p, middle, axis=1) + entropy(q, middle, axis=1)) / 2
    np.testing.assert_allclose(found.js, js, atol=1e-9)
    assert (found.kl >= 0).all() and (found.js <= np.log(2) + 1e-9).all()


def test_a_constant_added_to_all_logits_is_seen_and_changes_nothing() -> None:
    a = np.array([[1.0, 2.0, 3.0]])
    found = divergence(a, a + 5)
    assert found.kl[0] < 1e-15
    assert found.shift[0] == pytest.approx(5)
    assert found.largest[0] < 1e-14


def test_the_margin_is_what_a_flip_had_to_overcome() -> None:
    found = divergence(np.array([[2.0, 1.5, 0.0]]), np.array([[1.5, 2.0, 0.0]]))
    assert not found.agrees[0]
    assert found.margin[0] == pytest.approx(0.5)


def test_masked_tokens_are_left_out_of_both() -> None:
    a = np.array([[1.0, 2.0, 3.0, -np.inf]])
    b = np.array([[1.0, 2.0, -np.inf, -np.inf]])
    found = divergence(a, b)
    assert found.kl[0] == pytest.approx(0)
    assert found.masked[0] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_no_divergence(bad: float) -> None:
    found = divergence(np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([[1.0, bad], [1.0, 2.0]]))
    assert found.finite.tolist() == [False, True]
    assert np.isnan(found.kl[0])


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_a_truncated_divergence_is_a_lower_bound(seed: int, k: int) -> None:
    a, b = (softmax(side[0]) for side in drawn(seed, 3.0))
    listed = [dict(zip(map(int, top), np.log(p[top]), strict=True))
              for p in (a, b) for top in [np.argsort(-p)[:k]]]  # fmt: skip
    assert truncated_kl(*listed) <= entropy(a, b) + 1e-9


def test_hidden_states_by_relative_distance_and_fit() -> None:
    a, b = np.array([3.0, 4.0, 0.0]), np.array([3.0, 4.0, 5.0])
    assert relative(a, b) == pytest.approx(1.0)
    assert relative(np.zeros(3), np.zeros(3)) == 0
    assert np.isinf(relative(np.zeros(3), a))
    assert fit(a, 2 * a) == (pytest.approx(2.0), pytest.approx(0.0))


def test_perplexity_is_the_exponential_of_mean_nats() -> None:
    assert perplexity(np.log([2.0, 8.0])) == pytest.approx(4.0)
