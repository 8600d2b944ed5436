"""Free memory that the C library keeps."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress


def give_back() -> None:
    """Return what is free to the system, where the C library (glibc) can be asked to.

    It keeps small pieces that were freed, such as weights that have been copied elsewhere, and a
    peak counts them.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)
