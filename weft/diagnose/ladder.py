"""The ladder: looks at two sides, cheap and exact ones first.

Each rung takes those before it for equal, so the first that finds something is where A and B part.
Rungs on facts that are given (0 to 5) can find several independent causes; what is computed (6, 7)
then only measures what they do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from weft.diagnose.finding import Looked
from weft.diagnose.rungs import (
    attachment,
    decoding,
    first_step,
    hidden,
    logits,
    sampling,
    settings,
    text,
    trajectory,
    update,
    validity,
    weights,
)
from weft.diagnose.sides.evidence import Pair


@dataclass(frozen=True)
class Rung:
    """One look."""

    number: int
    name: str
    look: Callable[[Pair], Looked]


RUNGS: tuple[Rung, ...] = (
    Rung(0, "validity", validity.look),
    Rung(1, "settings", settings.look),
    Rung(2, "text and tokens", text.look),
    Rung(3, "base weights", weights.look),
    Rung(4, "adapters", attachment.look),
    Rung(5, "effective updates", update.look),
    Rung(6, "hidden states", hidden.look),
    Rung(7, "next-token distributions", logits.look),
    Rung(8, "decoding", decoding.look),
    Rung(9, "sampling", sampling.look),
    Rung(10, "first training step", first_step.look),
    Rung(11, "training trajectory", trajectory.look),
)


def climb(pair: Pair, rungs: tuple[Rung, ...] | None = None) -> dict[Rung, Looked]:
    """What every rung says, in order."""
    return {rung: rung.look(pair) for rung in (RUNGS if rungs is None else rungs)}
