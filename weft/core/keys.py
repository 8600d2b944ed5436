"""Randomness as values: a key names one draw, and the same name always gives the same draw.

    Key.of(seed).fold("order", epoch)      the order of the rows in an epoch
    Key.of(seed).fold("init", site_name)   the initial A of one site

There is no global generator in Weft. Keys become generators in two places only: `Key.numpy` here
and `weft.model.noise` for tensors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Key:
    """A 64-bit name of one random draw."""

    value: int

    @classmethod
    def of(cls, seed: int) -> Key:
        """The root key of a run."""
        return cls(_digest(b"weft", repr(int(seed))))

    def fold(self, *path: str | int) -> Key:
        """The key that `path` names below this one; different paths give independent draws."""
        value = self.value
        for part in path:
            tag = "s" if isinstance(part, str) else "i"
            value = _digest(value.to_bytes(8, "little"), f"{tag}:{part}")
        return Key(value)

    def numpy(self) -> np.random.Generator:
        """A fresh NumPy generator for this key."""
        return np.random.Generator(np.random.PCG64(self.value))


def log_exponential(count: int, key: Key, position: int) -> np.ndarray:
    """Logarithms, fp32, of `count` exponential draws at one position of a key's endless noise.

    Philox is a counter: any position is reached at once, whatever was drawn before it.
    """
    noise = np.random.Generator(np.random.Philox(key=key.value, counter=[0, 0, 0, position]))
    return np.log(noise.standard_exponential(count)).astype(np.float32)


def _digest(prefix: bytes, text: str) -> int:
    return int.from_bytes(hashlib.blake2b(prefix + text.encode(), digest_size=8).digest(), "little")
