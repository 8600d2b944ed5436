"""Keys to tensors: the one place where PyTorch generators are made and seeded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from weft.core.keys import Key

MASK_PART = 2**17
"""Cells of a dropout mask that are drawn at a time: a multiple of 4, the cells of one raw draw."""


def generator(key: Key) -> torch.Generator:
    """A fresh CPU generator for this key."""
    return torch.Generator().manual_seed(key.value >> 1)  # manual_seed takes 63 bits


def uniform(shape: Sequence[int], low: float, high: float, key: Key) -> torch.Tensor:
    """Uniform fp32 draws on [low, high), on the CPU."""
    return torch.empty(tuple(shape)).uniform_(low, high, generator=generator(key))


def normal(count: int, key: Key) -> torch.Tensor:
    """Standard normal fp32 draws [count], on the CPU.

    NumPy's, which compares and looks up where PyTorch computes sines in whatever vectors the
    processor has: the same numbers on every machine, so that what was drawn can be drawn again.
    """
    return torch.from_numpy(key.numpy().standard_normal(count, dtype=np.float32))


def rademacher(count: int, key: Key) -> torch.Tensor:
    """Draws of -1 and 1 in fp32 [count], equally likely, on the CPU: one random bit each."""
    raw = key.numpy().bit_generator.random_raw((count + 63) // 64)
    bits = np.unpackbits(raw.view(np.uint8), count=count)
    return torch.from_numpy(bits).float().mul_(2).sub_(1)


def dropout_rate(rate: float) -> float:
    """The rate that `fill_keep_mask` really has: `rate` to the nearest 2^-16."""
    return round(rate * 2**16) / 2**16


def fill_keep_mask(mask: np.ndarray, drop: float, key: Key) -> None:
    """Draw into a boolean `mask` what dropout keeps: False with probability `dropout_rate(drop)`.

    Compares raw 16-bit draws with a threshold, which is five times faster than drawing floats; a
    part at a time, so that what is drawn stays in the processor's cache.
    """
    assert mask.flags.c_contiguous
    cells, draw = mask.reshape(-1), key.numpy().bit_generator.random_raw
    for start in range(0, cells.size, MASK_PART):
        part = cells[start : start + MASK_PART]
        raw = draw((part.size + 3) // 4).view(np.uint16)[: part.size]
        np.greater_equal(raw, np.uint16(round(drop * 2**16)), out=part)


@contextmanager
def global_generator(key: Key) -> Iterator[None]:
    """Give PyTorch's global generators this key for a while, and put the old state back.

    For code that is not ours and knows no keys: a base model's own dropout.
    """
    with torch.random.fork_rng():
        torch.manual_seed(key.value >> 1)
        yield


def torch_numbers(start: int | np.ndarray) -> torch.Generator:
    """A generator that gives what PyTorch's own gives after a user's seed, or from a state on.

    For draws of other code that are drawn again as it drew them; a state is that of
    `torch.get_rng_state`, as bytes.
    """
    made = torch.Generator()
    if isinstance(start, int):
        return made.manual_seed(start)
    made.set_state(torch.from_numpy(np.array(start, np.uint8)))
    return made


def legacy_numbers(seed: int, *, python: bool = False) -> np.random.RandomState:
    """What `numpy.random` gives after a user's seed; `python`: what the module `random` gives.

    Both are one Mersenne Twister, seeded with a number or with its 32-bit words.
    """
    if not python:
        return np.random.RandomState(seed % 2**32)
    words = [abs(seed) >> at & 0xFFFFFFFF for at in range(0, max(1, abs(seed).bit_length()), 32)]
    return np.random.RandomState(words)


def new_numbers(seed: int) -> np.random.Generator:
    """What `numpy.random.default_rng` gives after a user's seed."""
    return np.random.default_rng(seed)
