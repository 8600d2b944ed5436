"""How PyTorch's threads wait for each other.

OpenMP's threads spin after every parallel operation, for milliseconds, in the hope of the next
one. On a machine with other work to do they take the core from the very thread that they wait
for, and a step of many small operations runs several times slower. A spin as long as the pause
between two operations of a step is enough where it is quiet, and soon over where it is not.
"""

from __future__ import annotations

import os

SPINS = "20000"
"""Some ten microseconds; GNU OpenMP's own default is 15 times that."""


def wait_politely() -> None:
    """Shorten the spin of GNU OpenMP, unless the user has said how threads wait.

    Call it before PyTorch is loaded: the setting is read once.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
