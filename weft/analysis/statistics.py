"""Intervals for evaluation scores. Examples are resampled, not tokens: these are dependent.

Shapes: E examples, R resamples. A mean is sum / count over all examples, so a long example counts
for more; a resample draws whole examples and recomputes both sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, t

from weft.core.keys import Key

RESAMPLES = 2000
LEVEL = 0.95
_CELLS = 2**22  # resampled examples held at once

Transform = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval. NaN ends: there were too few or no finite numbers for one."""

    low: float
    high: float
    estimate: float

    @property
    def excludes_zero(self) -> bool:
        """Whether both ends have the same sign: a difference that the sample can tell."""
        return self.low > 0 or self.high < 0

    @property
    def negated(self) -> Interval:
        """That of minus the quantity."""
        return Interval(-self.high, -self.low, -self.estimate)


def paired_bootstrap(
    sum_a_E: ArrayLike,
    count_a_E: ArrayLike,
    sum_b_E: ArrayLike,
    count_b_E: ArrayLike,
    key: Key,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    of: Transform = np.asarray,
) -> Interval:
    """Percentile interval of `of(mean b) - of(mean a)`, for two scores of the same examples.

    Both sides see the same resamples, so what makes an example hard for both cancels (Koehn,
    "Statistical Significance Tests for Machine Translation Evaluation", 2004). `of=np.exp` turns
    mean losses into perplexities; counts of one give the difference of plain means.
    """
    columns_4E = _columns(sum_a_E, count_a_E, sum_b_E, count_b_E)

    def difference(sums_4R: np.ndarray) -> np.ndarray:
        sum_a_R, count_a_R, sum_b_R, count_b_R = sums_4R
        return of(sum_b_R / count_b_R) - of(sum_a_R / count_a_R)

    return _percentile_interval(columns_4E, difference, key, resamples, level)


def bootstrap(
    sum_E: ArrayLike,
    count_E: ArrayLike,
    key: Key,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    of: Transform = np.asarray,
) -> Interval:
    """Percentile interval of `of(mean)` for the scores of one model."""
    columns_2E = _columns(sum_E, count_E)
    return _percentile_interval(columns_2E, lambda s: of(s[0] / s[1]), key, resamples, level)


def accuracy_interval(correct: int, total: int, *, level: float = LEVEL) -> Interval:
    """Wilson score interval of a proportion: sound near 0 and 1 and for few examples."""
    if total == 0:
        return Interval(math.nan, math.nan, math.nan)
    ends = binomtest(correct, total).proportion_ci(level, method="wilson")
    return Interval(float(ends.low), float(ends.high), correct / total)


def t_interval(values: ArrayLike, *, level: float = LEVEL) -> Interval:
    """Student's interval of the mean of a few independent values, such as one a seed.

    Of one value, or of values that are not all finite, the ends are NaN.
    """
    values_n = np.asarray(values, dtype=np.float64)
    count = len(values_n)
    if count == 0 or not np.isfinite(values_n).all():
        return Interval(math.nan, math.nan, math.nan)
    mean = float(values_n.mean())
    if count == 1:
        return Interval(math.nan, math.nan, mean)
    error = float(values_n.std(ddof=1)) / math.sqrt(count)
    half = float(t.ppf((1 + level) / 2, count - 1)) * error
    return Interval(mean - half, mean + half, mean)


def _columns(*columns: ArrayLike) -> np.ndarray:
    """The columns as one array [K, E], without examples in which nothing was counted."""
    columns_KE = np.array(columns, dtype=np.float64)
    counts = columns_KE[1::2]
    return columns_KE[:, (counts > 0).all(axis=0)]


def _percentile_interval(
    columns_KE: np.ndarray, statistic: Transform, key: Key, resamples: int, level: float
) -> Interval:
    """`statistic` of the column sums [K], and the middle `level` of it over resamples [K, R]."""
    examples = columns_KE.shape[1]
    if examples == 0 or not np.isfinite(columns_KE).all():
        return Interval(math.nan, math.nan, math.nan)
    estimate = float(statistic(columns_KE.sum(axis=1)[:, None])[0])
    if examples == 1:
        return Interval(math.nan, math.nan, estimate)
    sums_KR = np.concatenate(list(_resampled_sums(columns_KE, key, resamples)), axis=1)
    low, high = np.quantile(statistic(sums_KR), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), estimate)


def _resampled_sums(columns_KE: np.ndarray, key: Key, resamples: int) -> Iterator[np.ndarray]:
    """Sums over E examples drawn with replacement, a chunk [K, r] of the resamples at a time."""
    examples = columns_KE.shape[1]
    generator = key.numpy()
    rows = max(1, _CELLS // examples)
    for start in range(0, resamples, rows):
        draw_RE = generator.integers(examples, size=(min(rows, resamples - start), examples))
        yield np.stack([column_E[draw_RE].sum(axis=1) for column_E in columns_KE])
