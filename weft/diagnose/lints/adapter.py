"""Is the adapter there, does it act, with which strength, and of what is it made?"""

from __future__ import annotations

import math
from collections.abc import Mapping

from weft.diagnose.compare import algebra
from weft.diagnose.compare.operators import adapter, declared_scale, factors, operators, path_scale
from weft.diagnose.compare.places import group, number
from weft.diagnose.compare.recipes import recipe
from weft.diagnose.lints.lint import Lint, Lints, State, some
from weft.diagnose.rungs.control import idle
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.diagnose.words import counted
from weft.runs.evidence import Snapshot

USUAL_SCALES = (1e-3, 64.0)
"""Scales outside are legal and rarely meant."""
UNEXPLAINED = 0.01
"""More than this share of what a module adds is not what its factors say."""
COARSE = 0.25
"""Half a unit of the weights' last place to the numbers of an update: above it, merging loses."""

DONE = {"load": "loaded", "save": "saved"}


def look(side: Evidence) -> Lints:
    """All of it, for the adapter as it was used, or as it is in its files."""
    of = adapter(side)
    if of is None:
        yield from _absent(side)
        return
    yield from _finite(side, of)
    yield from _attached(side, of)
    yield from _control(side)
    yield from _trainable(side, of)
    yield from _rank(side, of)
    yield from _scale(side, of)
    yield from _merged(side)


def _control(side: Evidence) -> Lints:
    """Whether what was computed is what the loaded adapter gives, or what the bare base gives."""
    found = idle(side)
    if found is not None:
        yield Lint(
            "adapter adds",
            "problem",
            found.words,
            value=found.attached,
            place=found.place,
            fix="look at what leaves the adapter out of the forward",
        )
    elif any(each.name == "attached" for each in side.checks):
        worst = max(max(each.values) for each in side.checks if each.name == "attached")
        words = f"{worst:.1g} nats off a forward that has the loaded adapter"
        yield Lint("adapter adds", "ok", words, value=worst)


def _absent(side: Evidence) -> Lints:
    """No adapter: was one loaded or saved all the same? Of a base, such an event has its class."""
    done = [each for each in side.happened if each.what in ("load", "save")]
    loaded = [each for each in done if "class" not in each.facts and each.facts.get("modules")]
    count = max((each.facts.get("modules") or 0 for each in loaded), default=0)
    merged = [each for each in side.happened if each.what in ("merge", "commit")]
    if merged:
        many = merged[0].facts.get("modules") or count
        words = f"merged into the base at {counted(many, 'module')}: the base carries it"
        yield Lint("attached", "ok", words, value=many)
    elif count and side.passes:
        path = loaded[0].facts.get("path") or loaded[0].place
        yield Lint(
            "attached",
            "problem",
            f"an adapter of {counted(count, 'module')} was {DONE[loaded[0].what]}"
            + (f" ({path})" if path else "")
            + ", and no pass used one",
            value=0,
            where=loaded[0].where,
            fix="use the model that PeftModel.from_pretrained returns, not the one given to it",
        )
    elif side.kind != "config":
        yield Lint("attached", "ok", "there is no adapter: the base alone", value=0)


def _finite(side: Evidence, of: Snapshot) -> Lints:
    norms = {name: (m.norm_a, m.norm_b, m.norm_update) for name, m in of.modules.items()}
    bad = [name for name, each in norms.items() if not all(map(math.isfinite, each))]
    if bad:
        yield Lint(
            "finite factors",
            "problem",
            f"factors are not finite at {group(bad, list(norms))}",
            value=len(bad),
            place=bad[0],
            where=of.where,
            fix="use an earlier checkpoint, and a lower rate or clipping",
        )


def _attached(side: Evidence, of: Snapshot) -> Lints:
    every = list(of.modules)
    zero = [name for name, m in of.modules.items() if m.norm_update == 0 and m.norm_b == 0]
    silent = [
        name
        for name, m in of.modules.items()
        if name not in zero and not m.merged and path_scale(m) == 0
    ]
    here = f"attached at {counted(len(every), 'module')}"
    if silent:
        yield Lint(
            "attached",
            "problem",
            f"{here}, and adds nothing at {group(silent, every)}: inactive, or scaled by 0",
            value=len(silent),
            place=silent[0],
            where=of.where,
            fix="activate it (set_adapter, enable_adapter_layers), and look at its scale",
        )
    elif len(zero) == len(every) and not (side.steps or side.kind == "config"):
        yield Lint(
            "attached",
            "warning",
            f"{here}, and B is zero at all of them: it is as it was made, and does nothing",
            value=0,
            where=of.where,
            fix="load the trained weights; keys that match no module leave B as it was made",
        )
    elif zero and len(zero) < len(every):
        yield Lint(
            "attached",
            "warning",
            f"{here}, and B is zero at {group(zero, every)}",
            value=len(zero),
            place=zero[0],
            where=of.where,
            fix="compare the keys of the adapter file with the names of modules",
        )
    else:
        norms = [m.norm_update for m in of.modules.values() if math.isfinite(m.norm_update)]
        acts = f"|dW| up to {number(max(norms))}" if norms else "no update is finite"
        acts = "B is zero, as at the start" if zero else acts
        yield Lint("attached", "ok", f"{here}; {acts}", value=len(every))


def _trainable(side: Evidence, of: Snapshot) -> Lints:
    """How much can be trained, and whether that is as it should be."""
    count = of.trainable.get("adapter", 0)
    frozen = of.trainable and count == 0 and not any(m.trainable for m in of.modules.values())
    if side.steps and frozen:
        yield Lint(
            "trainable",
            "problem",
            f"0 parameters of the adapter are trainable, and "
            f"{counted(len(side.steps), 'step')} of training done",
            value=0,
            where=of.where,
            fix="PeftModel.from_pretrained(..., is_trainable=True): a loaded adapter is frozen",
        )
    elif frozen:
        yield Lint(
            "trainable",
            "ok",
            "0 trainable parameters: normal, nothing was trained here (PEFT freezes an adapter "
            "that it loads); it is attached and acts all the same",
            value=0,
        )
    elif of.trainable:
        yield Lint("trainable", "ok", f"{counted(count, 'trainable parameter')}", value=count)
    if base := of.trainable.get("base", 0):
        state: State = "problem" if side.steps else "ok"
        yield Lint(
            "base frozen",
            state,
            f"{base:,} parameters of the base can be trained, too",
            value=base,
            where=of.where,
            fix="requires_grad_(False) on the base before the optimiser is made",
        )


def _rank(side: Evidence, of: Snapshot) -> Lints:
    ranks = sorted({m.rank for m in of.modules.values()})
    shown = some(ranks)
    asked = _asked(side, of)
    if asked is not None and ranks != [asked] and not of.declared.get("rank_pattern"):
        yield Lint(
            "rank",
            "problem",
            f"rank {asked} was asked for, and the factors have {shown}",
            value=ranks[0],
            where=of.where,
            fix="look for where the rank is overwritten",
        )
        return
    lower = _lower_products(side, of)
    if lower:
        least = min(lower.values())
        yield Lint(
            "rank",
            "warning",
            f"rank {shown}, and B @ A has less at {group(list(lower), list(of.modules))}: "
            f"{least} at the least",
            value=least,
            place=next(iter(lower)),
            fix="a lower rank is enough, or training has not used all of it",
        )
    else:
        yield Lint("rank", "ok", f"rank {shown}", value=ranks[-1])


def _asked(side: Evidence, of: Snapshot) -> int | None:
    setting = side.settings.get("adapter.rank")
    for value in (of.declared.get("r"), of.declared.get("rank"), setting and setting.value):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _lower_products(side: Evidence, of: Snapshot) -> dict[str, int]:
    """Modules whose trained update has a lower rank than its factors."""
    found = {}
    for name, module in of.modules.items():
        if not math.isfinite(module.norm_update) or not module.norm_b:
            continue
        update = factors(side, module)
        if update is None:
            continue
        rank = algebra.rank(update)
        if rank < min(module.rank, *module.shape):
            found[name] = rank
    return found


def _scale(side: Evidence, of: Snapshot) -> Lints:
    both = Pair(side, side)
    every = list(of.modules)
    live = {name: m for name, m in of.modules.items() if m.active and not m.merged}
    measured = {n: m.seen_scale for n, m in live.items() if m.seen_scale is not None and m.norm_b}
    other = [
        name
        for name, seen in measured.items()
        if live[name].scale is not None and not _close(seen, declared_scale(live[name])) and seen
    ]
    strange = [n for n, m in live.items() if m.norm_b and (m.unexplained or 0) > UNEXPLAINED]
    if other:
        name = other[0]
        seen, said = measured[name], declared_scale(of.modules[name])
        rule = recipe(both, name, "A", seen)
        yield Lint(
            "scale",
            "problem",
            f"{group(other, every)} are scaled by {number(seen)}, and declare {number(said)}"
            + (f" ({rule})" if rule else ""),
            value=seen,
            place=name,
            where=of.where,
            fix=f"multiply B @ A by {number(said)}",
        )
    elif strange:
        share = max(live[name].unexplained or 0 for name in strange)
        yield Lint(
            "scale",
            "problem",
            f"what {group(strange, every)} add is not a multiple of B @ A: {share:.1%} of it is "
            "something else",
            value=share,
            place=strange[0],
            where=of.where,
            fix="look at the layout of the factors, and at what else the layer adds",
        )
    else:
        yield from _usual(of, {name: path_scale(m) for name, m in live.items()})


def _usual(of: Snapshot, scales: Mapping[str, float]) -> Lints:
    values = sorted({float(f"{scale:.6g}") for scale in scales.values()})
    if not values:
        return
    shown = some([number(value) for value in values])
    low, high = USUAL_SCALES
    odd = [value for value in values if value and not low <= abs(value) <= high]
    if 0.0 in values:
        return  # said under `attached`
    if odd:
        yield Lint(
            "scale",
            "warning",
            f"scale {shown}: outside of what is usual ({low:g} to {high:g})",
            value=odd[0],
            where=of.where,
            fix="see whether alpha was divided by the rank",
        )
    else:
        alphas = sorted({m.alpha for m in of.modules.values() if m.alpha is not None})
        told = f" (alpha {some([number(a) for a in alphas])})" if alphas else ""
        yield Lint("scale", "ok", f"scale {shown}{told}", value=values[0])


def _close(x: float, y: float) -> bool:
    return abs(x - y) <= 0.01 * max(abs(x), abs(y))


def _merged(side: Evidence) -> Lints:
    """Whether the weights are fine enough for what was, or would be, merged into them."""
    found = {op.name: op.coarse for op in operators(Pair(side, side)) if op.coarse is not None}
    coarse = [name for name, value in found.items() if value > COARSE]
    told = [each for each in side.happened if each.what in ("merge", "commit")]
    if not found or not coarse:
        return
    dtype = next((each.dtype for each in side.weights if each.dtype), "its dtype")
    worst = max(found.values())
    words = (
        f"half a unit in the last place of {dtype} weights is {worst:.1g} times the update at "
        f"{group(coarse, list(found))}"
    )
    if told:
        yield Lint(
            "merge precision",
            "problem",
            f"{words}: merging lost part of it",
            value=worst,
            place=coarse[0],
            where=told[0].where,
            fix="merge in float32, or keep the adapter beside its base",
        )
    else:
        yield Lint("merge precision", "ok", f"{words}: not merged here, and better not", worst)
