"""What noise alone gives: the floor under which a difference is no difference.

A floor is the 99th percentile of null draws: what comes out when something is changed that must not
matter (a repeat, one unit in the last place of the embeddings, and of the others those in which A
and B really differ: a row alone or in a batch, cached or recomputed decoding, a batch in one
forward or several). Draws are those that each side took of itself. Where a null was not measured,
or A and B differ in something that no null covers, published start values count, and the floor
says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from weft.diagnose.sides.evidence import Evidence, Pair
from weft.diagnose.words import counted
from weft.runs.evidence import Check

Unit = Literal["nats", "hidden", "loss", "logits"]
"""Mean KL over rows; relative L2 of hidden states; relative change of a loss or of the norm of a
gradient; largest absolute difference of log-probabilities."""

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Of a machine's numbers, by dtype."""

START: dict[Unit, dict[str, float]] = {
    "nats": {"float32": 2e-6, "bfloat16": 6e-4},
    "hidden": {"float32": 1e-5, "bfloat16": 2e-2},
    "loss": {"float32": 1e-5, "bfloat16": 1e-2},
    "logits": {"float32": 1e-2, "bfloat16": 2e-1},
}
"""Until measured: of log-probabilities an RMS of 2e-3 in float32 and 3.5e-2 in bfloat16, so half
its square in nats and some five times it at the worst token; 1e-5 and 2e-2 of hidden states. They
are those of the reference of issue 6, from published tolerances of other projects."""

_LOGIT = 32 * EPSILON["float32"]  # of logits, whose magnitude seldom exceeds 32

ROUNDING: dict[Unit, float] = {
    "nats": _LOGIT**2 / 2,
    "hidden": EPSILON["float32"],
    "loss": EPSILON["float32"],
    "logits": _LOGIT,
}
"""What rounding recorded values to float32 gives: no floor is lower."""

ALWAYS = ("repeat", "ulp")
"""Nulls that any two runs differ in."""

FAILED = 10.0
"""A null that is this many start values above them is a fault of the side, not noise."""

COVERED = ("environment.threads", "environment.torch", "environment.deterministic", "attention")
"""Settings that may change the order of sums, and that no null draw covers."""


@dataclass(frozen=True)
class Floor:
    """The largest difference that noise explains, in the unit that was asked for."""

    value: float
    source: str  # measured from what, or a start value and why
    measured: bool = False


def floor(pair: Pair, unit: Unit, trained: bool = False) -> Floor:
    """The floor of the less exact of both sides.

    What was `trained` since the evidence began has the rounding of all steps in it, which no null
    of one forward shows: there the start value is the least.
    """
    dtype = dtype_of(pair)
    start = _start(unit, dtype)
    draws = [value for check in _nulls(pair) for value in _values(check, unit, dtype)]
    gaps = tuple(uncovered(pair))
    if not draws:
        return Floor(start, f"start value for {dtype}: no null was measured")
    names = sorted({check.name for check in _nulls(pair) if _in_unit(check, unit)})
    value = max(float(np.percentile(draws, 99)), ROUNDING[unit])
    if "ulp" not in names and unit != "loss":
        gaps = (*gaps, "units in the last place")
    if trained and unit != "loss":
        gaps = (*gaps, "training, which amplifies rounding")
    if gaps and start > value:
        return Floor(start, f"start value for {dtype}: no null was measured for {', '.join(gaps)}")
    return Floor(value, f"{counted(len(draws), 'null draw')} ({', '.join(names)})", True)


def logit_floor(pair: Pair) -> Floor:
    """The largest difference of log-probabilities that noise gives: what may flip a first token.

    KL is half the variance of that difference (second order), so nats that were measured give its
    standard deviation; the largest over a vocabulary is taken as five of them.
    """
    direct = floor(pair, "logits")
    if direct.measured:
        return direct
    nats = floor(pair, "nats")
    if nats.measured:
        return Floor(5 * math.sqrt(2 * nats.value), f"from {nats.source}", True)
    return direct


def dtype_of(pair: Pair) -> str:
    """The less exact dtype that either side computes in."""
    seen = [name for _, side in pair.sides for name in _dtypes(side)]
    return max(seen, key=lambda name: EPSILON[name], default="float32")


def _dtypes(side: Evidence) -> Iterator[str]:
    names = [each.dtype for each in side.passes] or [each.dtype for each in side.weights]
    for name in {*names, str(_setting(side, "dtype"))}:
        short = name.removeprefix("torch.").removeprefix("mlx.core.")
        if short in EPSILON:
            yield short


def uncovered(pair: Pair) -> Iterator[str]:
    """What A and B differ in that changes the order of sums, and that no null draw covers."""
    for key in COVERED:
        a, b = (_setting(side, key) for _, side in pair.sides)
        if a is not None and b is not None and a != b:
            yield key.removeprefix("environment.")
    for what, told in (("attention", _attentions), ("merged adapters", _merged)):
        a, b = told(pair.a), told(pair.b)
        if a and b and a != b:
            yield what


def _attentions(side: Evidence) -> set[Any]:
    return {each.attention for each in side.weights if each.attention}


def _merged(side: Evidence) -> set[Any]:
    """Whether updates are in the weights: at one of its events, or in its snapshots."""
    found: set[Any] = {each.merged for shot in side.snapshots for each in shot.modules.values()}
    return found | {True for each in side.happened if each.what in ("merge", "commit")}


def _setting(side: Evidence, key: str) -> Any:
    found = side.settings.get(key)
    return None if found is None else found.value


def _start(unit: Unit, dtype: str) -> float:
    """The start value of a dtype; those not listed scale with epsilon, nats with its square."""
    known = START[unit]
    if dtype in known:
        return known[dtype]
    near = "float32" if dtype == "float64" else "bfloat16"
    return known[near] * _ratio(unit, dtype, near)


def _ratio(unit: Unit, dtype: str, to: str) -> float:
    ratio = EPSILON[dtype] / EPSILON[to]
    return ratio * ratio if unit == "nats" else ratio


def _nulls(pair: Pair) -> tuple[Check, ...]:
    """Checks of both sides that are nulls of this pair."""
    names = {*ALWAYS}
    if len({_batching(side) for _, side in pair.sides}) > 1:
        names |= {"row", "split"}
    if len({_cached(side) for _, side in pair.sides}) > 1:
        names |= {"cache"}
    if len({frozenset(_dtypes(side)) for _, side in pair.sides}) > 1:
        names |= {"float32"}
    return tuple(each for _, side in pair.sides for each in side.checks if each.name in names)


def _batching(side: Evidence) -> tuple[tuple[int, int], ...]:
    """Rows and lengths of its passes: differ where batches, or their padding, do."""
    return tuple(sorted({(each.rows, each.length) for each in side.passes if each.past == 0}))


def _cached(side: Evidence) -> bool:
    return any(each.past > 0 for each in side.passes)


def _in_unit(check: Check, unit: Unit) -> bool:
    if unit == "loss":
        return check.unit == "relative"
    return check.unit == unit


def _values(check: Check, unit: Unit, dtype: str) -> Iterator[float]:
    """Its draws in this unit, without what is a fault of the side rather than noise.

    A null that must not matter and does is a finding of the rungs, never slack. Rounding grows with
    the machine's epsilon, so a draw counts no more than the same in float32 says; where that is not
    known, one far above anything that rounding gives counts as the start value.
    """
    if not _in_unit(check, unit):
        return
    for value in check.values:
        if math.isnan(value):
            continue
        if check.in_float32 is not None:
            exact = max(check.in_float32, ROUNDING[unit])
            yield min(value, exact * _ratio(unit, dtype, "float32"))
        elif check.name == "ulp" or value <= FAILED * _start(unit, dtype):
            yield value
        else:
            yield _start(unit, dtype)
