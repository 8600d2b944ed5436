"""Which rule gives a scale: names for the numbers that stacks put before B @ A."""

from __future__ import annotations

import math
from collections.abc import Iterator

from weft.diagnose.compare.operators import adapter, module_of
from weft.diagnose.compare.places import number
from weft.diagnose.sides.evidence import Evidence, Pair


def recipe(pair: Pair, name: str, letter: str, scale: float) -> str | None:
    """The rule by which alpha and rank give `scale` at a module of one side, in words.

    Where a side does not say its alpha, the other's counts: code that leaves out a rule often
    reads the same configuration.
    """
    own, other = (pair.a, pair.b) if letter == "A" else (pair.b, pair.a)
    rank = _rank(own, name) or _rank(other, name)
    alpha = _alpha(own, name) or _alpha(other, name)
    for rule, value in _rules(alpha, rank):
        if abs(scale - value) <= 0.01 * abs(value):
            return rule
    return None


def _rules(alpha: float | None, rank: int | None) -> Iterator[tuple[str, float]]:
    if alpha and rank:
        yield f"alpha / rank = {number(alpha)} / {rank}", alpha / rank
        yield f"alpha / sqrt(rank) = {number(alpha)} / sqrt({rank})", alpha / math.sqrt(rank)
        yield f"alpha = {number(alpha)}, not divided by the rank", alpha
        yield f"alpha / rank twice over, with rank {rank}", alpha / rank**2
    yield "1: no scale", 1.0
    if rank:
        yield f"1 / rank, with rank {rank}: alpha is left out", 1.0 / rank
    yield "20, the default of mlx-lm", 20.0


def _rank(side: Evidence, name: str) -> int | None:
    module = module_of(side, name)
    return None if module is None else module.rank


def _alpha(side: Evidence, name: str) -> float | None:
    module = module_of(side, name)
    if module is not None and module.alpha is not None:
        return module.alpha
    snapshot = adapter(side)
    declared = snapshot.declared if snapshot is not None else {}
    setting = side.settings.get("adapter.alpha")
    for value in (declared.get("lora_alpha"), declared.get("alpha"), setting and setting.value):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    return None
