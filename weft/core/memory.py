"""Free memory that the C library keeps, or gives back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # as malloc.h calls them, with M_ before
MOST = 2**31 - 1  # mallopt takes an int


def give_back() -> None:
    """Return what is free to the system, where the C library (glibc) can be asked to.

    It keeps small pieces that were freed, such as weights that have been copied elsewhere, and a
    peak counts them.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within this context, what is freed stays for whoever asks next; at its end it is given back.

    The C library otherwise returns large pieces at once, and the system clears every page of the
    next ones. A training step takes and frees the same pieces again and again: its clearing takes
    a good twentieth of the time. Where the library is not glibc, nothing changes.
    """
    if (libc := _glibc()) is None:
        yield
        return
    libc.mallopt(TRIM_THRESHOLD, MOST)
    libc.mallopt(MMAP_MAX, 0)
    try:
        yield
    finally:  # to what glibc itself comes to when pieces are large
        libc.mallopt(MMAP_MAX, 2**16)
        libc.mallopt(MMAP_THRESHOLD, 2**25)
        libc.mallopt(TRIM_THRESHOLD, 2**26)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
