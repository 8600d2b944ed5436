"""Digests and sketches: what is kept of tensors that are too large to keep.

A sketch of a linear module is what it makes of a few fixed vectors, so that two sketches differ by
the sketch of the difference of the weights, whatever the shapes of their factors (Johnson and
Lindenstrauss, 1984, is why few are enough).

Shapes: I in, O out, K probes, D hidden size, P projections.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np

from weft.core.batch import IGNORE
from weft.core.keys import Key

PROBES = 4
PROJECTIONS = 8


@cache
def probes(inputs: int) -> np.ndarray:
    """Fixed float32 vectors [I, K] of unit expected length."""
    drawn = Key.of(0).fold("probes", inputs).numpy().standard_normal((inputs, PROBES))
    return (drawn / np.sqrt(inputs)).astype(np.float32)


@cache
def projections(size: int) -> np.ndarray:
    """Fixed float32 matrix [D, P] that keeps lengths in expectation."""
    drawn = Key.of(0).fold("projections", size).numpy().standard_normal((size, PROJECTIONS))
    return (drawn / np.sqrt(PROJECTIONS)).astype(np.float32)


def digest(array: np.ndarray) -> str:
    """The first 16 hex digits of the SHA-256 of dtype, shape and bytes."""
    return digest_of(str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes())


def digest_of(dtype: str, shape: tuple[int, ...], data: bytes) -> str:
    """Likewise, of a dtype that NumPy may not have."""
    made = hashlib.sha256(f"{dtype}{shape}".encode())
    made.update(data)
    return made.hexdigest()[:16]


Ids = Sequence[int] | np.ndarray


def batch_digest(rows: Iterable[Ids]) -> str:
    """Of the rows of a batch, token ids without padding, in any order."""
    return _digest_of_set(np.asarray(row, np.int64).tobytes() for row in rows)


def labels_digest(rows: Iterable[Ids], labels: Iterable[Ids]) -> str:
    """Of what is supervised in a batch: ids and labels of each row, both without padding.

    The label of a first position counts for nothing: nothing comes before it to predict it.
    """
    pairs = zip(rows, labels, strict=True)
    return _digest_of_set(
        np.concatenate([[len(row)], row, [IGNORE], supervised[1:]]).astype(np.int64).tobytes()
        for row, supervised in pairs
    )


def _digest_of_set(parts: Iterable[bytes]) -> str:
    each = sorted(hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(b"".join(each)).hexdigest()[:16]
