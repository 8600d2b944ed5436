"""How many members share a forward: a pure function of what is asked for.

More positions in a forward fill the processor's cores and share what each operation costs by
itself. From some thousands on nothing is left to share, and only memory grows: docs/design.md has
the measurement.
"""

from __future__ import annotations

from collections.abc import Iterable

from weft.core.batch import Batch

POSITIONS = 8192
"""Tokens, of all members, that a forward reads at most where nobody says how many members; a
member is never divided."""


def members_at_once(most: int | None, batches: Iterable[Batch]) -> int:
    """`most` where it is given; else as many as stay within `POSITIONS` on the longest batch."""
    if most is not None:
        return most
    longest = max((sum(row.read for row in batch.examples) for batch in batches), default=0)
    return max(1, POSITIONS // max(1, longest))
