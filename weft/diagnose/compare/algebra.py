"""Low-rank updates compared exactly, without ever forming them.

An update is `scale * B @ A`. Its factors mean nothing by themselves, since (G^-1 A, B G) is the
same update for every invertible G; what is here depends on the product alone. Two updates are put
into one pair of orthonormal bases (QR of the joined factors), where each is a matrix of at most
(R1 + R2) x (R1 + R2) whose inner products, norms and singular values are those of the update.

Shapes: I in, O out, R rank, K probes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUMERICAL_RANK = 1e-5
"""Singular values below this share of the largest are those of rounding in float32 factors."""


@dataclass(frozen=True, eq=False)
class Update:
    """`scale * b @ a`, with a [R, I] and b [O, R]."""

    a: np.ndarray
    b: np.ndarray
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Out and in."""
        return self.b.shape[0], self.a.shape[1]

    def scaled(self, factor: float) -> Update:
        """`factor` times this update."""
        return Update(self.a, self.b, self.scale * factor)

    def on(self, x_IK: np.ndarray) -> np.ndarray:
        """What it adds to the output for the inputs `x_IK`: [O, K] float64."""
        a, b = self.a.astype(np.float64), self.b.astype(np.float64)
        return self.scale * (b @ (a @ x_IK.astype(np.float64)))


def cores(*updates: Update) -> tuple[np.ndarray, ...]:
    """Each update as a small float64 matrix, all in the same two orthonormal bases."""
    _, left = np.linalg.qr(np.concatenate([u.b for u in updates], axis=1).astype(np.float64))
    _, right = np.linalg.qr(np.concatenate([u.a for u in updates], axis=0).T.astype(np.float64))
    found, at = [], 0
    for update in updates:
        rank = update.a.shape[0]
        span = slice(at, at + rank)
        found.append(update.scale * left[:, span] @ right[:, span].T)
        at += rank
    return tuple(found)


@dataclass(frozen=True)
class Fit:
    """How the second of two updates follows from the first."""

    ratio: float  # c of the least-squares fit second = c * first; nan if the first is 0
    cosine: float  # nan if either is 0
    residual: float  # norm(second - c * first) / norm(second); 0 where the second is 0
    norm: float  # of the first
    other: float  # of the second

    @property
    def parallel(self) -> bool:
        """Whether the second is a multiple of the first, to rounding in 16 bits."""
        return self.residual < 1e-2 and self.ratio > 0


def fit(first: Update, second: Update) -> Fit:
    """Compare two updates of one shape. All of it is independent of the choice of factors."""
    one, two = cores(first, second)
    norm, other = float(np.linalg.norm(one)), float(np.linalg.norm(two))
    if not norm:
        return Fit(float("nan"), float("nan"), float(other > 0), norm, other)
    ratio = float((one * two).sum()) / norm**2
    if not other:
        return Fit(0.0, float("nan"), 0.0, norm, other)
    residual = float(np.linalg.norm(two - ratio * one)) / other
    return Fit(ratio, ratio * norm / other, residual, norm, other)


def inner(first: Update, second: Update) -> float:
    """<first, second> = s1 s2 tr((B1^T B2)(A2 A1^T))."""
    one, two = cores(first, second)
    return float((one * two).sum())


def norm(update: Update) -> float:
    """Frobenius norm."""
    return float(np.linalg.norm(cores(update)[0]))


def distance(first: Update, second: Update) -> float:
    """Frobenius norm of the difference; exact also where the two are nearly the same."""
    one, two = cores(first, second)
    return float(np.linalg.norm(one - two))


def singular_values(update: Update) -> np.ndarray:
    """Largest first, [min(O, I, R)]."""
    found: np.ndarray = np.linalg.svd(cores(update)[0], compute_uv=False)
    return found[: min(*update.shape, update.a.shape[0])]


def rank(update: Update) -> int:
    """How many singular values are more than rounding."""
    values = singular_values(update)
    return int((values > NUMERICAL_RANK * values.max(initial=0.0)).sum())


def row_norms(update: Update) -> np.ndarray:
    """[O], of the rows of the product."""
    _, triangle = np.linalg.qr(update.a.T.astype(np.float64))
    rows_OR = update.scale * update.b.astype(np.float64) @ triangle.T
    found: np.ndarray = np.linalg.norm(rows_OR, axis=1)
    return found


def column_norms(update: Update) -> np.ndarray:
    """[I], of the columns of the product."""
    return row_norms(Update(update.b.T, update.a.T, update.scale))


def same_numbers(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays hold the same numbers, in whatever order and shape."""
    if one.size != other.size:
        return False
    x, y = np.sort(one, axis=None), np.sort(other, axis=None)
    return bool(np.allclose(x, y, rtol=1e-5, atol=1e-6 * float(np.abs(x).max(initial=0.0))))
