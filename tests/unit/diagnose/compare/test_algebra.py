"""Low-rank algebra against dense matrices in float64."""

from __future__ import annotations

import numpy as np
import pytest

from weft.core.keys import Key
from weft.diagnose.compare.algebra import (
    Update,
    column_norms,
    distance,
    fit,
    inner,
    norm,
    rank,
    row_norms,
    same_numbers,
    singular_values,
)

SHAPES = [(7, 5, 2, 3), (4, 9, 4, 1), (12, 12, 6, 6), (3, 3, 8, 5)]  # out, in, both ranks


def dense(update: Update) -> np.ndarray:
    return update.scale * update.b @ update.a


@pytest.fixture(params=[(*shape, seed) for shape in SHAPES for seed in range(5)], ids=str)
def two(request: pytest.FixtureRequest) -> tuple[Update, Update]:
    out, inputs, rank_1, rank_2, seed = request.param
    random = Key.of(seed).fold(out, inputs).numpy()

    def draw(r: int, scale: float) -> Update:
        return Update(random.standard_normal((r, inputs)), random.standard_normal((out, r)), scale)

    return draw(rank_1, 2.0), draw(rank_2, 0.5)


def test_inner_products_norms_and_distances_are_those_of_the_matrices(two) -> None:
    first, second = two
    x, y = dense(first), dense(second)
    assert inner(first, second) == pytest.approx((x * y).sum())
    assert norm(first) == pytest.approx(np.linalg.norm(x))
    assert distance(first, second) == pytest.approx(np.linalg.norm(x - y))


def test_a_fit_is_the_one_of_least_squares(two) -> None:
    x, y = map(dense, two)
    found = fit(*two)
    c = (x * y).sum() / (x * x).sum()
    assert found.ratio == pytest.approx(c)
    assert found.cosine == pytest.approx(
        (x * y).sum() / (np.linalg.norm(x) * np.linalg.norm(y)), abs=1e-12
    )
    assert found.residual == pytest.approx(np.linalg.norm(y - c * x) / np.linalg.norm(y))


def test_singular_values_are_those_of_the_matrix(two) -> None:
    for update in two:
        values = singular_values(update)
        expected = np.linalg.svd(dense(update), compute_uv=False)[: len(values)]
        np.testing.assert_allclose(values, expected, atol=1e-10)


def test_row_and_column_norms_are_those_of_the_matrix(two) -> None:
    for update in two:
        np.testing.assert_allclose(row_norms(update), np.linalg.norm(dense(update), axis=1))
        np.testing.assert_allclose(column_norms(update), np.linalg.norm(dense(update), axis=0))


def test_nothing_depends_on_the_choice_of_factors(two) -> None:
    first, second = two
    size = first.a.shape[0]
    gauge = Key.of(3).fold(size).numpy().standard_normal((size, size)) + 3 * np.eye(size)
    turned = Update(np.linalg.inv(gauge) @ first.a, first.b @ gauge, first.scale)
    assert distance(first, turned) == pytest.approx(0, abs=1e-9 * norm(first) + 1e-12)
    assert fit(first, turned).ratio == pytest.approx(1)
    assert fit(turned, second).cosine == pytest.approx(fit(first, second).cosine, abs=1e-9)


def test_a_scaled_update_is_parallel_with_its_ratio(two) -> None:
    first = two[0]
    found = fit(first, first.scaled(20.0))
    assert found.ratio == pytest.approx(20)
    assert found.residual < 1e-12
    assert found.parallel


def test_scale_and_factors_that_cancel_are_the_same_update(two) -> None:
    first = two[0]
    halved = Update(first.a / 2, first.b, first.scale * 2)
    assert distance(first, halved) == pytest.approx(0, abs=1e-12)


def test_small_distances_are_exact_where_inner_products_would_cancel() -> None:
    random = Key.of(0).numpy()
    first = Update(random.standard_normal((2, 8)), random.standard_normal((8, 2)))
    moved = Update(first.a, first.b * (1 + 1e-12))
    assert distance(first, moved) == pytest.approx(1e-12 * norm(first), rel=1e-2)


def test_the_rank_is_that_of_the_product_and_not_of_the_factors() -> None:
    random = Key.of(0).numpy()
    a, b = random.standard_normal((8, 20)), random.standard_normal((16, 8))
    b[:, 1:] = 0
    assert rank(Update(a, b)) == 1
    assert rank(Update(a.astype(np.float32), random.standard_normal((16, 8)))) == 8
    assert rank(Update(a, np.zeros((16, 8)))) == 0


def test_fits_of_zero_updates() -> None:
    one = Update(np.ones((1, 3)), np.ones((2, 1)))
    zero = Update(np.ones((1, 3)), np.zeros((2, 1)))
    assert fit(one, zero).ratio == 0
    assert np.isnan(fit(zero, one).ratio)


def test_the_same_numbers_in_another_order() -> None:
    x = np.arange(12.0).reshape(3, 4)
    assert same_numbers(x, x.T)
    assert same_numbers(x, x[::-1])
    assert not same_numbers(x, x + 1)
    assert not same_numbers(x, x[:2])
