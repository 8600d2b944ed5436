"""The factors of a module's adapter as evidence.

Shapes: r rank, I inputs and O outputs of a module.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from weft.runs.evidence import AdapterModule
from weft.runs.sketch import digest


def module_seen(
    a_rI: np.ndarray, b_Or: np.ndarray, scale: float, name: str, **more: Any
) -> AdapterModule:
    """Shapes, norms and digests (of float32) of factors whose arrays are `name`.a and `name`.b.

    `more` are further fields of the event.
    """
    return AdapterModule(
        rank=len(a_rI),
        shape=(len(b_Or), a_rI.shape[1]),
        scale=scale,
        norm_a=_norm(a_rI),
        norm_b=_norm(b_Or),
        norm_update=abs(scale) * norm_of_product(a_rI, b_Or),
        digest_a=digest(a_rI.astype(np.float32)),
        digest_b=digest(b_Or.astype(np.float32)),
        a=f"{name}.a",
        b=f"{name}.b",
        **more,
    )


def norm_of_product(a_rI: np.ndarray, b_Or: np.ndarray) -> float:
    """Frobenius norm of B @ A, which is not formed: its square is tr((B^T B)(A A^T))."""
    a_rI, b_Or = a_rI.astype(np.float64), b_Or.astype(np.float64)
    square = float(np.sum((b_Or.T @ b_Or) * (a_rI @ a_rI.T)))
    return square if math.isnan(square) else math.sqrt(max(square, 0.0))


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array.astype(np.float64)))
