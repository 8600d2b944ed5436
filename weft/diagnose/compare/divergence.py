"""How far two computations are apart: distributions, hidden states, losses.

Everything is in float64. A logit of -inf is a masked token: tokens that either side masks are left
out of both. A row that is not finite has no divergence: it is NaN here, and rungs say which module
it comes from.

Shapes: N rows, V vocabulary, K recorded tokens of V, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Divergence:
    """How B's next-token distributions are apart from A's, a row each; all are [N]."""

    kl: np.ndarray  # KL(A || B), nats
    reverse: np.ndarray  # KL(B || A), nats
    js: np.ndarray  # Jensen and Shannon, nats, at most log 2
    agrees: np.ndarray  # bool: the same most likely token
    margin: np.ndarray  # logit of A's first token less that of B's, in A; 0 where they agree
    largest: np.ndarray  # largest absolute difference of log-probabilities
    shift: np.ndarray  # mean of B's raw logits less A's, which no probability sees
    masked: np.ndarray  # int: tokens that only one side masks

    @property
    def finite(self) -> np.ndarray:
        """Bool [N]: rows in which both sides are numbers."""
        return np.isfinite(self.kl)


def divergence(a_NV: np.ndarray, b_NV: np.ndarray) -> Divergence:
    """Compare logits [N, V] (or log-probabilities, which are logits too), row by row."""
    rows = [_row(_exact(a_V), _exact(b_V)) for a_V, b_V in zip(a_NV, b_NV, strict=True)]
    columns = zip(*rows, strict=True) if rows else [()] * 8
    return Divergence(*(np.array(column) for column in columns))


def _row(a_V: np.ndarray, b_V: np.ndarray) -> tuple[float, ...]:
    from scipy.special import log_softmax, rel_entr  # a third of a second: not for runs alone

    open_a, open_b = a_V != -np.inf, b_V != -np.inf
    kept = open_a & open_b
    masked = int((open_a != open_b).sum())
    a_V, b_V = a_V[kept], b_V[kept]
    if not len(a_V) or not (np.isfinite(a_V).all() and np.isfinite(b_V).all()):
        nan = float("nan")
        return nan, nan, nan, False, nan, nan, nan, masked
    log_a, log_b = log_softmax(a_V), log_softmax(b_V)
    p_a, p_b = np.exp(log_a), np.exp(log_b)
    middle = (p_a + p_b) / 2
    first_a, first_b = int(log_a.argmax()), int(log_b.argmax())
    return (
        max(float((p_a * (log_a - log_b)).sum()), 0.0),
        max(float((p_b * (log_b - log_a)).sum()), 0.0),
        float((rel_entr(p_a, middle) + rel_entr(p_b, middle)).sum()) / 2,
        first_a == first_b,
        float(log_a[first_a] - log_a[first_b]),
        float(np.abs(log_a - log_b).max()),
        float((b_V - a_V).mean()),
        masked,
    )


def truncated_kl(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """A lower bound of KL(A || B) from the most likely tokens' log-probabilities alone, nats.

    The tokens that both list are kept apart and all others are one bucket: summing probabilities
    can only lower a divergence (the log-sum inequality).
    """
    from scipy.special import rel_entr

    shared = sorted(a.keys() & b.keys())
    p_K, q_K = (np.exp([side[token] for token in shared], dtype=np.float64) for side in (a, b))
    p = np.append(p_K, max(1 - p_K.sum(), 0.0))
    q = np.append(q_K, max(1 - q_K.sum(), 0.0))
    return float(rel_entr(p, q).sum())


def relative(a: np.ndarray, b: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """norm(B - A) / norm(A) over `axis`; inf where A is 0 and B is not, 0 where both are."""
    a, b = _exact(a), _exact(b)
    gap, size = (np.sqrt((x * x).sum(axis=axis)) for x in (b - a, a))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap == 0, 0.0, gap / size)


def fit(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """c of the least-squares fit B = c A, and norm(B - c A) / norm(B)."""
    a, b = _exact(a).ravel(), _exact(b).ravel()
    square, size = float(a @ a), float(np.linalg.norm(b))
    c = float(a @ b) / square if square else float("nan")
    rest = float(np.linalg.norm(b - c * a)) / size if size and square else 0.0
    return c, rest


def perplexity(nll: np.ndarray) -> float:
    """exp of the mean of nats a token."""
    return float(np.exp(_exact(nll).mean()))


def _exact(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, dtype=np.float64)
