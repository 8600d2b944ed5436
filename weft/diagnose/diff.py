"""`weft diff`: open both sides, climb the ladder, judge, and prove if that is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from weft.core.errors import InputError
from weft.diagnose.compare.passages import passages
from weft.diagnose.finding import Diagnosis
from weft.diagnose.ladder import climb
from weft.diagnose.sides.evidence import Evidence, Kind, Pair
from weft.diagnose.sides.opening import open_evidence
from weft.diagnose.verdict import judge

TOGETHER = (frozenset({"run", "recording"}), frozenset({"adapter"}), frozenset({"config"}))
"""Kinds of sides that have something in common to compare."""


Watch = Callable[[int, int, str], None]
"""Told of swaps that are done, of how many, and of the next one in words."""


def diff(
    a: str,
    b: str,
    *,
    prove: bool = False,
    base: str | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> Diagnosis:
    """Say where two runs, recordings, adapters or configurations part, and why.

    With `prove`, suspected causes are exchanged between replicas of both sides, on `base` if
    the sides do not say on what. Raises `InputError` for a side that is none of these, for two
    that cannot be compared, and for a base that nothing reads.
    """
    started = time.perf_counter()
    pair = Pair(open_evidence(a, base), open_evidence(b, base))
    _refuse_unlike(pair.a, pair.b)
    if base is not None and not prove and pair.a.kind != "adapter":
        raise InputError(
            f"the base {base} is not read: {a} and {b} say on what they ran",
            hint="leave --base out, or give --prove, which loads it",
        )
    diagnosis = judge(pair, climb(pair))
    if prove:
        from weft.diagnose.proof.prove import prove as proved

        diagnosis = proved(pair, diagnosis, base=base, seed=seed, watch=watch)
    seconds = time.perf_counter() - started
    return replace(diagnosis, passages=passages(pair), seconds=seconds)


def _refuse_unlike(a: Evidence, b: Evidence) -> None:
    if not any({a.kind, b.kind} <= kinds for kinds in TOGETHER):
        raise InputError(
            f"{a.ref} is {_article(a.kind)} and {b.ref} is {_article(b.kind)}: they have nothing "
            "to compare",
            hint="give two of a kind; a run and a recording also go together",
        )


def _article(kind: Kind) -> str:
    names = {"adapter": "an adapter", "config": "a configuration"}
    return names.get(kind, f"a {kind}")
