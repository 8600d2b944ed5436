"""Whether a side's adapter added to its own forwards: beside ones that are known to add it, or not.

One side alone; the recorder of Weft computed both controls from the adapter that was loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from weft.diagnose.compare import noise
from weft.diagnose.finding import Finding, Swap
from weft.diagnose.sides.evidence import Evidence, Pair


@dataclass(frozen=True)
class Idle:
    """Steps of a model, from 1, whose logits are those of a forward without its adapter."""

    model: str
    first: int
    steps: int  # compared
    attached: float  # nats off a forward with the adapter, at the first of them
    bare: float  # and off one without it

    @property
    def place(self) -> str:
        """As a finding says it."""
        when = f", while decoding, from token {self.first} on" if self.first > 1 else ""
        return f"all adapted modules{when}"

    @property
    def words(self) -> str:
        """What is known, of the side."""
        return (
            f"the adapter is loaded and adds nothing ({self.place}): {self.bare:.1g} nats off the "
            f"bare base, {self.attached:.2g} off the base with the adapter"
        )


def idle(side: Evidence) -> Idle | None:
    """The first model whose adapter, from some step on, adds nothing although it would."""
    limit = noise.FAILED * noise.floor(Pair(side, side), "nats").value
    for model in dict.fromkeys(check.model for check in side.checks):
        attached, bare = (
            next((c.values for c in side.checks if c.name == name and c.model == model), ())
            for name in ("attached", "bare")
        )
        off = [x > limit >= y for x, y in zip(attached, bare, strict=False)]
        if any(off):
            at = off.index(True)
            return Idle(model, at + 1, len(off), attached[at], bare[at])
    return None


def findings(pair: Pair) -> Iterator[Finding]:
    """An adapter that adds nothing, on one side only."""
    found = {letter: idle(side) for letter, side in pair.sides}
    for letter, other in (("A", "B"), ("B", "A")):
        here, there = found[letter], found[other]
        if here is not None and there is None:
            yield Finding(
                4,
                "factor",
                "attach",
                here.place,
                f"in {letter}, {here.words}; in {other} it acts",
                step=here.first if here.first > 1 else None,
                value=here.attached,
                floor=noise.floor(pair, "nats").value,
                unit="nats",
                fix=f"look at what leaves the adapter out of the forward in {letter}",
                swap=Swap("attach"),
            )
