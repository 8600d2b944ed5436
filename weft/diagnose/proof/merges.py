"""Updates that are in the weights of a base: found there, so that they can be exchanged as such.

A base that holds an update is no other base. Whether it does is seen number by number: is the
tensor what rounding the base and the update together gives?

Shapes: O outputs, I inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from weft.diagnose.finding import Diagnosis, Swap
from weft.diagnose.labels import Label
from weft.diagnose.proof.forward import Engine, Unspliced, merge
from weft.diagnose.proof.replica import BaseValue, Moment, Replica, Update, Updates

AGREE = 0.9
"""Share of the numbers that an update moves, or that were moved, that must be as rounding says."""

BASES: tuple[Label, ...] = ("base", "merge-precision", "double-apply")

LOST = 0.1
"""Share of an update that must be lost to rounding for the merge to have done something else."""


def unmerged(
    engine: Engine, a: Replica, b: Replica, known: Sequence[Updates]
) -> tuple[Replica, Replica]:
    """Both replicas, `known` updates that are in their weights told apart from the rest."""
    if not known:
        return a, b

    def found(other: Replica, number: int, mine: Moment) -> Moment:
        base = mine.base
        plain = _plain(base, other.moments[number].base)
        if plain is None:
            return mine
        try:
            held, before = (_tensors(engine.model(each)) for each in (base, plain))
        except Unspliced:
            return mine
        names = [
            name for name in before if name in held and not torch.equal(held[name], before[name])
        ]
        merged = {}
        for name in names:
            module = name.removesuffix(".weight")
            made = next(_explaining(held[name], before[name], module, known), None)
            if made is not None:
                merged[module] = made
        if not merged:
            return mine
        left = {n: base.changed[n] for n in base.changed if n.removesuffix(".weight") not in merged}
        if base.changed:
            return replace(mine, base=replace(base, changed=left, merged=merged))
        if len(merged) < len(names) or held.keys() != before.keys():
            return mine  # another base besides
        return replace(
            mine, base=replace(plain, digests=base.digests, tied=base.tied, merged=merged)
        )

    return (
        a.at_each(lambda number, mine: found(b, number, mine)),
        b.at_each(lambda number, mine: found(a, number, mine)),
    )


def _plain(base: BaseValue, other: BaseValue) -> BaseValue | None:
    """What a base may have been before something was merged into it."""
    if base.changed:
        return replace(base, changed={}, digests={}, tied=None)
    if base.load != other.load and None not in (base.load, other.load):
        return replace(other, dtype=base.dtype, attention=base.attention, digests={}, tied=None)
    return None


def _tensors(model: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False))


def _explaining(
    held: torch.Tensor, before: torch.Tensor, module: str, known: Sequence[Updates]
) -> Iterator[Update]:
    """Updates whose merging makes `held` of `before`."""
    for updates in known:
        its = updates.get(module)
        if its is None:
            continue
        unit = replace(its, scale=1.0)
        for scale in (its.scale, _fitted(held, before, unit)):
            made = replace(its, scale=scale)
            if scale > 0 and agrees(held, before, made):
                yield made


def _fitted(held: torch.Tensor, before: torch.Tensor, unit: Update) -> float:
    """The scale at which an update is nearest to what was added."""
    delta = _shaped(unit.delta_OI, held)
    added = held.double() - before.double()
    size = float((delta * delta).sum())
    return float((added * delta).sum()) / size if size else 0.0


def _shaped(delta_OI: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    delta = torch.from_numpy(delta_OI)
    return delta if delta.shape == like.shape else delta.T


def agrees(held: torch.Tensor, before: torch.Tensor, update: Update) -> bool:
    """Whether a weight is another one with an update in it.

    An update that is rounded before it is added, or multiplied in fewer digits, may be off by a
    unit in the last place; where it is itself no larger than that, it must be exact.
    """
    if update.delta_OI.size != held.numel() or before.shape != held.shape:
        return False
    delta = _shaped(update.delta_OI, held)
    if delta.shape != held.shape:
        return False
    made = merge(before, update)
    eps = torch.finfo(held.dtype).eps
    size = torch.maximum(held.double().abs(), made.double().abs())
    parts = replace(update, a_RI=np.abs(update.a_RI), b_OR=np.abs(update.b_OR))
    near = eps * (size + 2 * _shaped(np.abs(parts.delta_OI), held))
    apart = (held.double() - made.double()).abs()
    fine = (held == made) | ((apart <= near) & (delta.abs() > 4 * near))
    moved = (held != before) | (made != before)
    return bool(moved.any()) and float(fine[moved].double().mean()) >= AGREE


@dataclass(frozen=True)
class Told:
    """What two sides do with the same update, where one of them merged it."""

    label: Label
    words: str
    places: tuple[str, ...]
    value: float


def told_apart(engine: Engine, a: Replica, b: Replica) -> Told | None:
    """Whether bases differ by a merge alone that lost an update, or that was not the only one."""
    for replica, other, name in ((b, a, "B"), (a, b, "A")):
        for mine, its in zip(replica.moments, other.moments, strict=True):
            if not mine.base.merged or its.base.merged:
                continue
            if (mine.base.load, [*mine.base.changed]) != (its.base.load, [*its.base.changed]):
                continue
            merged = mine.base.merged
            acting, beside = (
                {n for n, each in moment.adapter.items() if each.scale} for moment in (mine, its)
            )
            if not merged.keys() <= beside:
                continue
            twice = tuple(each for each in merged if each in acting)
            if twice:
                said = f"{name}'s base is the other's with the update merged, which acts beside it"
                return Told("double-apply", said, twice, 2.0)
            lost = _lost(engine, mine.base)
            if lost > LOST:
                dtype = mine.base.dtype.removeprefix("torch.")
                said = (
                    f"{name}'s base is the other's with the update merged and rounded to {dtype}, "
                    f"number by number: {lost:.0%} of the update is lost"
                )
                return Told("merge-precision", said, tuple(merged), lost)
    return None


def named(diagnosis: Diagnosis, told: Told | None) -> Diagnosis:
    """The diagnosis, its other base called what the replicas know it to be."""
    if told is None:
        return diagnosis
    causes = []
    for cause in diagnosis.causes:
        its = cause.finding
        if its.label in BASES and its.swap is not None and its.swap.factor == "base":
            words = its.words if its.label == told.label else told.words
            swap = Swap("adapter", told.places)
            its = replace(its, label=told.label, words=words, swap=swap, value=told.value)
            cause = replace(cause, finding=its)
        causes.append(cause)
    return replace(diagnosis, causes=tuple(causes))


def _lost(engine: Engine, base: BaseValue) -> float:
    """The share of merged updates that rounding took."""
    held, before = (_tensors(engine.model(each)) for each in (base, replace(base, merged={})))
    gap = size = 0.0
    for module, update in base.merged.items():
        name = f"{module}.weight"
        delta = _shaped(update.delta_OI, held[name])
        gap += float((held[name].double() - before[name].double() - delta).square().sum())
        size += float(delta.square().sum())
    return (gap / size) ** 0.5 if size else 0.0
