"""Perplexities beyond what a float holds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weft.analysis.compare import perplexity, perplexity_difference
from weft.analysis.statistics import paired_bootstrap
from weft.core.keys import Key
from weft.core.table import ScoreRow

KEY = Key.of(0)


def difference(loss_a, loss_b):
    rows = [
        ScoreRow(name, tuple(map(str, range(len(loss)))), np.array(loss), np.ones(len(loss)))
        for name, loss in (("a", loss_a), ("b", loss_b))
    ]
    of_loss = paired_bootstrap(rows[0].sums, rows[0].counts, rows[1].sums, rows[1].counts, KEY)
    return perplexity_difference(*rows, KEY, of_loss)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([800.0] * 4, [900.0] * 4, math.inf),
        ([900.0] * 4, [800.0] * 4, -math.inf),
        ([800.0] * 4, [800.0] * 4, 0.0),
        ([1.0] * 4, [800.0] * 4, math.inf),
        ([800.0] * 4, [1.0] * 4, -math.inf),
        ([1.0] * 4, [2.0] * 4, math.exp(2) - math.exp(1)),
    ],
)
def test_a_perplexity_difference_is_never_nan(a, b, expected):
    found = difference(a, b)
    ends = (found.low, found.high, found.estimate)
    assert ends == pytest.approx((expected,) * 3)


def test_where_only_some_resamples_overflow_there_is_still_an_interval():
    found = difference([600.0, 820.0, 700.0, 650.0], [640.0, 830.0, 720.0, 640.0])
    assert not any(map(math.isnan, (found.low, found.high, found.estimate)))


def test_perplexity_is_infinite_where_a_float_ends():
    assert perplexity(709.5) == math.inf and perplexity(0.0) == 1.0
