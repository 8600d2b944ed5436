"""A small step runs on one thread: it is over before another has woken up.

The threads of PyTorch wait for each other after every product. The number of threads follows from
shapes alone, so that a run computes the same wherever it goes on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch

from weft.model.adapter import Site

FEW_ROWS = 8
"""Up to so many rows a product takes the time in which its weight is read."""

SMALL = 2**21
"""Multiplications of one thread in the time that another takes to wake up."""


@contextmanager
def threads_for(sites: Collection[Site], rows: int) -> Iterator[None]:
    """Within this context one thread computes, if a forward of so many rows is small.

    Elsewhere, and afterwards, it is as many as before.
    """
    numbers = sum(site.inputs * site.outputs for site in sites)
    before = torch.get_num_threads()
    if before == 1 or numbers * max(rows, FEW_ROWS) > SMALL * len(sites):
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
