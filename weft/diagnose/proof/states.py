"""The weights of a side at a moment: its base with all that changed until then, and its adapter."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import numpy as np

from weft.diagnose.proof.replica import BaseValue, Update, Updates
from weft.diagnose.sides.evidence import Evidence
from weft.runs.evidence import (
    AdapterModule,
    Event,
    Happened,
    Pass,
    Snapshot,
    TrainStep,
    Weights,
)

GONE = ("merge_and_unload", "unload", "delete_adapter")
"""Calls of PEFT after which a model has no adapter."""


def base_of(side: Evidence, model: str | None, before: Event | None) -> BaseValue:
    """The base at the moment of an event: as first used, with all that changed until then."""
    events = side.events if before is None else side.events[: _until(side, before)]
    seen = [e for e in events if isinstance(e, Weights) and model in (None, e.model)]
    seen = seen or [each for each in side.weights if model in (None, each.model)][:1]
    if not seen:
        return BaseValue(_named(side))
    changed: dict[str, np.ndarray] = {}
    digests: dict[str, str] = {}
    for each in seen:
        for name in each.tensors.keys() - each.changed.keys():
            changed.pop(name, None)  # as it was loaded, again
        changed |= {name: side.array(array) for name, array in each.changed.items()}
        digests |= {name: tensor.digest for name, tensor in each.tensors.items()}
    first = seen[0]
    return BaseValue(
        _found(side, first.load) or _named(side), seen[-1].dtype or "float32", first.attention,
        changed, first.config, digests, tied=bool(first.tied) if first.tensors else None,
    )  # fmt: skip


def form(side: Evidence, before: Pass) -> tuple[Hashable, ...]:
    """What tells the weights of a pass from others: values, without reading any array."""
    digests: dict[str, str] = {}
    for each in side.events[: _until(side, before)]:
        if isinstance(each, Weights) and each.model == before.model:
            digests |= {name: tensor.digest for name, tensor in each.tensors.items()}
    snapshot = snapshot_at(side, before.model, before)
    modules = snapshot.modules if snapshot is not None else {}
    parts = ((n, each.digest_a, each.digest_b, _scale(each)) for n, each in sorted(modules.items()))
    return (hash(frozenset(digests.items())), *parts)


def _until(side: Evidence, event: Event) -> int:
    """How many events are of the time before an event.

    Weights that a script changed by hand are seen in the next pass, and written down right after.
    """
    at = _at(side, event)
    if isinstance(event, Pass):
        while at + 1 < len(side.events) and isinstance(side.events[at + 1], Weights):
            at += 1
    return at + 1


def _found(side: Evidence, ref: str | None) -> str | None:
    """Where a base lies that a script named from its own directory."""
    if ref is None or Path(ref).is_dir():
        return ref
    above = side.path.resolve().parents
    beside = next((each / ref for each in above if (each / ref / "config.json").is_file()), None)
    return str(beside) if beside is not None else ref


def _named(side: Evidence) -> str | None:
    for key in ("base", "model.base"):
        if key in side.settings and isinstance(side.settings[key].value, str):
            return str(side.settings[key].value)
    return None


def snapshot_at(side: Evidence, model: str | None, before: Event | None) -> Snapshot | None:
    """The adapter of a model at the moment of an event, as near as it was seen."""
    mine = [each for each in side.snapshots if model in (None, each.model)]
    if before is None:
        return mine[-1] if mine else None
    at = _at(side, before)
    steps = sum(isinstance(each, TrainStep) for each in side.events[:at])
    order = {id(event): n for n, event in enumerate(side.events)}
    earlier = [each for each in mine if order[id(each)] < at]
    since = side.events[order[id(earlier[-1])] : at] if earlier else ()
    if any(isinstance(each, Happened) and each.facts.get("call") in GONE for each in since):
        return None
    if earlier and _steps(earlier[-1]) == steps:
        return earlier[-1]
    same = [each for each in mine if _steps(each) == steps]
    ending = [each for each in mine if each.when == "end"]
    last = ending if steps == len(side.steps) else []
    near = same or last or earlier[-1:]
    return near[0] if near else None


def _at(side: Evidence, event: Event) -> int:
    return next(n for n, each in enumerate(side.events) if each is event)


def _steps(snapshot: Snapshot) -> int:
    return snapshot.step or 0


def updates_of(side: Evidence, snapshot: Snapshot | None) -> Updates:
    """What an adapter adds, with the scale that its modules were seen to have."""
    if snapshot is None:
        return {}
    found = {}
    for name, module in snapshot.modules.items():
        if module.a is not None and module.b is not None:
            found[name] = _update(side, module, _scale(module))
    return found


def _update(side: Evidence, module: AdapterModule, scale: float) -> Update:
    assert module.a is not None and module.b is not None
    a_RI, b_OR = (np.asarray(side.array(each), np.float32) for each in (module.a, module.b))
    return Update(a_RI, b_OR, scale, module.dropout, module.trainable)


def adapters(side: Evidence) -> list[Updates]:
    """Every adapter that was seen, as large as it says it is, wherever it was then."""
    found: dict[tuple[str, ...], Updates] = {}
    for each in side.snapshots:
        key = tuple(m.digest_a + m.digest_b for m in each.modules.values())
        full = {n: (m, _declared(m)) for n, m in each.modules.items() if m.a and m.b}
        if full and key not in found:
            found[key] = {name: _update(side, *module) for name, module in full.items()}
    return list(found.values())


def _declared(module: AdapterModule) -> float:
    if module.seen_scale:
        return module.seen_scale
    return 1.0 if module.scale is None else module.scale


def _scale(module: AdapterModule) -> float:
    """What multiplies B A beside the base: nothing where it is in the base's weights."""
    if module.merged:
        return 0.0
    if module.seen_scale is not None:
        return module.seen_scale
    declared = 1.0 if module.scale is None else module.scale
    return declared if module.active else 0.0
