"""What an adapted module computes in the end: its base weight and its update, merged or not.

Whether an update is added beside the base or was merged into it makes no difference to the result,
so both are told apart and put together again here, from sketches: what base and update make of a
few fixed inputs (weft.runs.sketch).

Shapes: O out, K probes, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from weft.diagnose.compare.algebra import Update
from weft.diagnose.compare.align import first_weights, from_blocks, models, modules
from weft.diagnose.compare.silent import Along, merged_silently
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.runs.evidence import AdapterModule, Snapshot, Weights
from weft.runs.sketch import probes

ROUNDING = {"float16": 2.0**-12, "bfloat16": 2.0**-9, "float32": 2.0**-25, "float64": 2.0**-54}
"""Relative rounding of a stored weight, by dtype."""

MERGED = 0.05
"""A share of an update below this is not one that was merged."""

EXACT = 2e-6
"""Relative distance of sketches that rounding in float32 can make."""


@dataclass(frozen=True, eq=False)
class Applied:
    """An update at one module of one side, and how much of it acts."""

    update: Update | None  # B @ A by itself; None: not kept, or not finite
    declared: float  # the scale that it says it has
    path: float  # the scale at which it is added beside the base
    merged: float = 0.0  # the scale at which the base contains it
    norm: float = 0.0  # of scale * B @ A, as recorded; not 0 where B @ A is not
    digests: tuple[str, str] = ("", "")  # of A and B
    flagged: bool = False  # the side says that it merged it

    @property
    def total(self) -> float:
        """The scale at which it acts."""
        return self.path + self.merged

    @property
    def finite(self) -> bool:
        """Whether its factors are numbers, and so can be compared with others."""
        return math.isfinite(self.norm)


@dataclass(frozen=True, eq=False)
class Operator:
    """One module on both sides; only one of them may have an adapter there."""

    name: str
    a: Applied | None
    b: Applied | None
    base: float | None = None
    """Relative distance of the base weights, without what merged updates explain."""

    whole: float | None = None
    """Distance of what the modules compute, base and update, relative to the base."""

    share: float | None = None  # that distance, relative to the larger of the two updates
    tolerance: float = EXACT  # of `base`
    coarse: float | None = None
    """Half a unit in the last place of the base's weights, to the size of the update's numbers."""

    merged_in: str = ""  # letters of the sides that merged, and add nothing beside the base
    along: Along | None = None  # where one side alone adds an update beside its base

    @property
    def rounded_away(self) -> bool:
        """Whether a merge lost more of an update than a tenth, and the weights are that coarse."""
        told = bool(self.merged_in) or any(
            each is not None and each.merged and not each.path for each in (self.a, self.b)
        )
        lost = self.share is not None and 0.1 < self.share < 1.5
        return told and lost and self.coarse is not None and self.coarse > 0.25

    @property
    def merged(self) -> bool:
        """Whether a base contains an update."""
        return any(each is not None and each.merged != 0 for each in (self.a, self.b))

    @property
    def equal(self) -> bool | None:
        """Whether both compute the same function, to rounding; None if it could not be seen.

        Nor can it where no update does anything yet: fresh adapters of any kind are equal.
        """
        if self.whole is None or not any(
            each is not None and each.norm for each in (self.a, self.b)
        ):
            return None
        within = self.share is not None and self.share <= (0.1 if self.merged else 0.01)
        return self.whole <= EXACT or within

    @property
    def same_factors(self) -> bool:
        """Whether both have the same A and B, byte for byte."""
        return self.a is not None and self.b is not None and self.a.digests == self.b.digests

    @property
    def blind(self) -> bool:
        """Whether the updates cannot be compared: factors differ, and were not kept."""
        known = all(each is None or each.update is not None for each in (self.a, self.b))
        return not known and not self.same_factors

    @property
    def same_base(self) -> bool | None:
        """Whether their base weights are the same besides merged updates."""
        return None if self.base is None else self.base <= self.tolerance


def adapter(side: Evidence) -> Snapshot | None:
    """The adapter as used: when it first did something, else as it was first seen."""
    seen = [each for each in side.snapshots if each.when in ("use", "merge")] or [*side.snapshots]
    if side.steps or not seen:
        return seen[0] if seen else None
    return next((each for each in seen if any(map(_acts, each.modules.values()))), seen[0])


def _acts(module: AdapterModule) -> bool:
    return module.norm_update > 0 and (module.merged or path_scale(module) != 0)


def scales(side: Evidence) -> dict[str, float]:
    """The measured scale of each module, from the first moment at which it could be measured."""
    found: dict[str, float] = {}
    for each in side.snapshots:
        for name, module in each.modules.items():
            if module.seen_scale is not None and module.norm_update > 0 and module.active:
                found.setdefault(name, module.seen_scale)
    return found


def path_scale(module: AdapterModule, measured: float | None = None) -> float:
    """The scale at which a module's update is added beside its base."""
    if module.seen_scale is not None and (module.norm_b > 0 or module.seen_scale != 0):
        return module.seen_scale
    if not module.active or module.merged:
        return 0.0
    if measured is not None:
        return measured
    return declared_scale(module)


def declared_scale(module: AdapterModule) -> float:
    """As declared; by alpha / rank where only those are known."""
    if module.scale is not None:
        return module.scale
    if module.alpha is not None:
        return module.alpha / module.rank
    return 1.0 if module.seen_scale is None else module.seen_scale


def module_of(side: Evidence, name: str) -> AdapterModule | None:
    """The adapter at a module, by its name, or by what follows the blocks' prefix."""
    of = adapter(side)
    if of is None:
        return None
    return of.modules.get(name) or next(
        (each for other, each in of.modules.items() if from_blocks(other) == from_blocks(name)),
        None,
    )


def ranks_of(pair: Pair, name: str) -> tuple[int | None, int | None]:
    """The ranks at a module in A and in B."""
    a, b = (module_of(side, name) for _, side in pair.sides)
    return (None if a is None else a.rank), (None if b is None else b.rank)


def factors(side: Evidence, module: AdapterModule) -> Update | None:
    """B @ A by itself; None where it was not kept, or is not finite."""
    if module.a is None or module.b is None:
        return None
    a, b = side.array(module.a), side.array(module.b)
    return Update(a, b) if np.isfinite(a).all() and np.isfinite(b).all() else None


@lru_cache(maxsize=4)
def operators(pair: Pair) -> tuple[Operator, ...]:
    """Every module that has an adapter on either side, under A's name where it has one there."""
    of_a, of_b = adapter(pair.a), adapter(pair.b)
    bases = _bases(pair, of_a, of_b)
    names: list[tuple[str | None, str | None]] = []
    if of_a is not None and of_b is not None:
        found = modules(of_a, of_b)
        names += found.pairs
        names += [(name, None) for name in found.only_a] + [(None, name) for name in found.only_b]
    elif of_a is not None:
        names += [(name, None) for name in of_a.modules]
    elif of_b is not None:
        names += [(None, name) for name in of_b.modules]
    seen_a, seen_b = scales(pair.a), scales(pair.b)
    told = "".join(letter for letter, side in pair.sides if _merge_told(side))
    made = [
        _operator(
            told,
            x or y or "",
            _applied(pair.a, of_a, x, seen_a),
            _applied(pair.b, of_b, y, seen_b),
            _base(pair.a, of_a, x or y, bases[0]),
            _base(pair.b, of_b, y or x, bases[1]),
            max(_rounding(bases[0]), _rounding(bases[1])),
        )
        for x, y in names
    ]
    silent = "" if told else merged_silently(each.along for each in made if each.along)
    return tuple(replace(each, merged_in=each.merged_in or silent) for each in made)


def _bases(
    pair: Pair, of_a: Snapshot | None, of_b: Snapshot | None
) -> tuple[Weights | None, Weights | None]:
    """The weights that the adapters are on."""
    a, b = first_weights(pair.a), first_weights(pair.b)
    partner = dict(models(pair).pairs)
    key_a = of_a.model if of_a is not None else None
    key_b = of_b.model if of_b is not None else None
    if key_a is None:
        key_a = next((x for x, y in partner.items() if y == key_b), None)
    if key_b is None:
        key_b = partner.get(key_a or "")
    return a.get(key_a or ""), b.get(key_b or "")


def _rounding(weights: Weights | None) -> float:
    dtype = weights.dtype.removeprefix("torch.") if weights is not None else "float32"
    return ROUNDING.get(dtype, ROUNDING["float32"])


def _applied(
    side: Evidence, of: Snapshot | None, name: str | None, measured: Mapping[str, float]
) -> Applied | None:
    if of is None or name is None:
        return None
    module = of.modules[name]
    declared = declared_scale(module)
    return Applied(
        factors(side, module),
        declared,
        path_scale(module, measured.get(name)),
        declared if module.merged else 0.0,
        module.norm_update or module.norm_a * module.norm_b,
        (module.digest_a, module.digest_b),
        module.merged,
    )


def _merge_told(side: Evidence) -> bool:
    return any(each.what == "merge" and not each.step for each in side.happened)


def _base(
    side: Evidence, of: Snapshot | None, name: str | None, weights: Weights | None
) -> np.ndarray | None:
    """[O, K] of the weight as it is, with whatever was merged into it."""
    module = of.modules.get(name or "") if of is not None else None
    if module is not None and module.base_sketch is not None:
        return side.array(module.base_sketch).astype(np.float64)
    sketch = weights.sketches.get(name or "") if weights is not None else None
    return None if sketch is None else side.array(sketch).astype(np.float64)


def _operator(
    told: str,
    name: str,
    a: Applied | None,
    b: Applied | None,
    base_a: np.ndarray | None,
    base_b: np.ndarray | None,
    rounding: float,
) -> Operator:
    finite = all(each is None or each.finite for each in (a, b))
    if not finite or base_a is None or base_b is None or base_a.shape != base_b.shape:
        return Operator(name, a, b)
    unit_a, unit_b = _sketch(a), _sketch(b)
    size = max(float(np.linalg.norm(base_a)), 1e-30)
    apart = base_b - base_a
    whole = apart.copy()
    larger = 0.0
    for sign, each, unit in ((-1, a, unit_a), (1, b, unit_b)):
        if each is not None and unit is not None:
            whole += sign * each.path * unit
            larger = max(larger, abs(each.declared) * float(np.linalg.norm(unit)))
    distance = float(np.linalg.norm(whole))
    merged_in = "".join(
        letter
        for letter, each in (("A", a), ("B", b))
        if (letter in told or (each is not None and each.flagged)) and not (each and each.path)
    )
    along = Along.of(apart, _beside(a, unit_a), _beside(b, unit_b), rounding * size)
    a, b, left = _explained(apart, a, b, unit_a, unit_b, EXACT * size)
    merged = any(each is not None and each.merged != 0 for each in (a, b))
    return Operator(
        name,
        a,
        b,
        left / size,
        distance / size,
        distance / larger if larger else None,
        max(4 * rounding, EXACT) if merged else EXACT,
        rounding * size / larger if larger else None,
        merged_in,
        along,
    )


def _beside(applied: Applied | None, unit: np.ndarray | None) -> np.ndarray | None:
    return None if applied is None or unit is None else applied.path * unit


def _sketch(applied: Applied | None) -> np.ndarray | None:
    if applied is None or applied.update is None:
        return None
    return applied.update.on(probes(applied.update.shape[1]))


def _explained(
    apart: np.ndarray,
    a: Applied | None,
    b: Applied | None,
    unit_a: np.ndarray | None,
    unit_b: np.ndarray | None,
    nothing: float,
) -> tuple[Applied | None, Applied | None, float]:
    """Both sides with the scales at which their bases contain updates, and what is left of `apart`.

    Of one update, the difference of the bases tells how much more of it B's contains than A's.
    """
    total = float(np.linalg.norm(apart))
    if total <= nothing:
        flagged = a is not None and b is not None and a.merged != 0 and b.merged != 0
        return (a, b, 0.0) if flagged else (_with(a, 0.0), _with(b, 0.0), 0.0)
    one = unit_b if unit_a is None or not unit_a.any() else unit_a
    if one is None or not one.any():
        return a, b, total
    two_updates = unit_a is not None and unit_b is not None and unit_a.any() and unit_b.any()
    if two_updates and abs(_cosine(unit_a, unit_b)) < 0.999:
        basis = np.stack([-_flat(unit_a), _flat(unit_b)], axis=1)
        found, *_ = np.linalg.lstsq(basis, apart.ravel(), rcond=None)
        left = apart.ravel() - basis @ found
        kept = [_significant(k, u, left) for k, u in zip(found, basis.T, strict=True)]
        left = apart.ravel() - basis @ kept
        return _with(a, kept[0]), _with(b, kept[1]), float(np.linalg.norm(left))
    k = float((apart * one).sum() / (one * one).sum())
    k = _significant(k, one, apart - k * one)
    left = apart - k * one
    owner = b if one is unit_b else a
    if owner is None:
        return a, b, total
    in_a = a.merged if a is not None and a.merged else max(-k, 0.0)
    in_b = in_a + k
    ratio = 1.0
    if two_updates:  # of one direction, but perhaps not of one length
        ratio = float(np.linalg.norm(_flat(unit_a)) / np.linalg.norm(_flat(unit_b)))
    absent = replace(owner, path=0.0, merged=0.0)
    return (
        _with(a or (absent if in_a else None), in_a),
        _with(b or (absent if in_b else None), in_b * ratio),
        float(np.linalg.norm(left)),
    )


def _significant(k: float, unit: np.ndarray, left: np.ndarray) -> float:
    """`k`, or 0 where it is no more than what rounding projects onto an update by chance."""
    length = float(np.linalg.norm(unit))
    if not length:
        return 0.0
    chance = float(np.linalg.norm(left)) / (length * np.sqrt(unit.size))
    return float(k) if abs(k) > 5 * chance else 0.0


def _flat(x: np.ndarray | None) -> np.ndarray:
    return np.zeros(0) if x is None else x.ravel()


def _cosine(x: np.ndarray | None, y: np.ndarray | None) -> float:
    one, other = _flat(x), _flat(y)
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _with(applied: Applied | None, merged: float) -> Applied | None:
    if applied is None:
        return None
    if abs(merged) < MERGED * abs(applied.declared):
        merged = 0.0
    return replace(applied, merged=merged)
