"""Adapters that a program merged before any of its models read anything.

Neither the weights before such a merge nor the update are ever seen; that it was made, of which
adapter and into which dtype, is.
"""

from __future__ import annotations

from dataclasses import dataclass

from weft.diagnose.sides.evidence import Evidence, Pair


@dataclass(frozen=True)
class Folded:
    """One such merge."""

    adapter: str  # digest of its files
    modules: int
    dtype: str  # of the weights that it went into
    where: str | None


def folded(side: Evidence) -> tuple[Folded, ...]:
    """In the order in which they were made."""
    dtype, adapter, found = "", "", []
    for event in side.happened:
        if event.what == "load" and "dtype" in event.facts:
            dtype = str(event.facts["dtype"])
        elif event.what == "load" and "adapter" in event.facts:
            adapter = str(event.facts.get("sha256", ""))
        elif event.what == "merge" and not event.step and dtype and adapter:
            modules = int(event.facts.get("modules", 0))
            found.append(Folded(adapter, modules, dtype, event.where))
    return tuple(found)


def other_dtypes(pair: Pair) -> tuple[Folded, Folded] | None:
    """The first merges of one adapter into weights of another dtype in A than in B, if all that
    both sides merged are the same adapters.
    """
    a, b = folded(pair.a), folded(pair.b)
    if [(x.adapter, x.modules) for x in a] != [(x.adapter, x.modules) for x in b]:
        return None
    return next(((x, y) for x, y in zip(a, b, strict=True) if x.dtype != y.dtype), None)
