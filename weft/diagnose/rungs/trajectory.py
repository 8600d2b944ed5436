"""Rung 11: the course of training: the first step that differs, and in what.

Of the fields of a step those that are given come first: its batch and labels, its rate, what was
done to the base and to the adapter between steps. Losses and adapters follow from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from weft.diagnose.compare import algebra, noise, trail
from weft.diagnose.compare.align import adapted, steps
from weft.diagnose.compare.operators import factors, path_scale
from weft.diagnose.finding import Finding, Looked, Outcome, Swap
from weft.diagnose.labels import Label
from weft.diagnose.rungs.outset import held
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.diagnose.sides.objective import minimised
from weft.diagnose.words import counted

RUNG = 11

MOVED = (*range(7), 10, 11)
"""Rungs whose factors can have moved what training makes."""

ADAPTERS = {"float64": 1e-6, "float32": 1e-3}
"""Relative difference of trained updates that amplified rounding gives; 5e-2 in 16 bits."""


def look(pair: Pair) -> Looked:
    """Compare step by step, then events, then what came out."""
    matched = steps(pair)
    if not matched.pairs:
        without = [name for name, side in pair.sides if not side.steps]
        why = f"no training step in {' and '.join(without)}" if without else "no step in common"
        return Looked(unseen=(f"training trajectory: {why}",))
    taken = matched.pairs
    findings = [
        *_lengths(pair),
        *_batches(pair, taken),
        *_labels(taken),
        *_rates(pair, taken),
        *_base(pair),
        *_turns(pair),
    ]
    gaps = trail.gaps(pair, taken)
    findings += [*_losses(gaps), *_optimiser(pair, taken, findings)]
    outcome = [*_loss_outcome(gaps), *_adapter_outcome(pair), *_more_steps(pair)]
    return Looked(tuple(findings), tuple(_equal(pair, taken, gaps)), (), tuple(outcome),
                  _curves(pair, taken))  # fmt: skip


def _lengths(pair: Pair) -> Iterator[Finding]:
    """One side takes more steps."""
    a, b = (max(each.step for each in side.steps) for _, side in pair.sides)
    if a == b:
        return
    yield Finding(
        RUNG,
        "effect" if _set_apart(pair, "steps", "epochs") else "factor",
        "schedule",
        f"step {min(a, b) + 1}",
        f"A takes {a} training steps, B {b}",
        step=min(a, b) + 1,
        value=float(a),
        other=float(b),
        unit="steps",
        swap=Swap("schedule", ("steps",)),
    )


def _batches(pair: Pair, taken: trail.Steps) -> Iterator[Finding]:
    """The same rows in another order, or other rows."""
    at = trail.first(taken, "batch")
    if at is None:
        return
    rows = trail.names_or_rows(pair, taken)
    share = trail.share(taken, "batch")
    words = f"batches differ from step {at.step} on ({share:.0%} of {counted(len(taken), 'step')})"
    label: Label = "order"
    nature: Any = "factor"
    if rows is None:
        digests = [{each.batch for each in side} for side in zip(*taken, strict=True)]
        words += (
            ": the same batches in another order"
            if digests[0] == digests[1]
            else "; which rows they hold was not recorded"
        )
    else:
        counts = [sum(each.values()) for each in rows]
        common = trail.overlap(*rows)
        if counts[0] != counts[1]:
            nature, label = "effect", "settings"
            words += f": {counts[0]} rows in the same steps of A, {counts[1]} of B"
        elif rows[0] == rows[1] or trail.same_data(pair):
            words += ": the same rows in another order"
        elif common >= 0.5:
            words += f": rows of the same data in another order ({common:.0%} are in both)"
        else:
            nature, label = "effect", "data"
            words += f": {common:.0%} of the rows are in both"
    seeds = [{f"{each.library} {each.seed}" for each in side.seeds} for _, side in pair.sides]
    if label == "order" and seeds[0] != seeds[1]:
        shown = [", ".join(sorted(each)) or "none" for each in seeds]
        words += f"; seeds: {shown[0]} in A, {shown[1]} in B"
    yield Finding(
        RUNG,
        nature,
        label,
        f"step {at.step}",
        words,
        step=at.step,
        value=share,
        floor=0.0,
        unit="share of steps",
        where=at.where,
        fix="shuffle with a seeded generator on both sides" if label == "order" else None,
        swap=Swap("order", step=at.step) if label == "order" else None,
    )


def _labels(taken: trail.Steps) -> Iterator[Finding]:
    """Labels that come to differ while batches do not; those of the first step are for rung 10."""
    kept = [(a, b) for a, b in taken if a.batch == b.batch]
    at = trail.first(kept, "labels")
    if at is not None and at.step > taken[0][0].step:
        words = f"the same batches have other labels from step {at.step} on"
        yield Finding(RUNG, "factor", "labels", f"step {at.step}", words, step=at.step,
                      swap=Swap("labels", step=at.step))  # fmt: skip


def _rates(pair: Pair, taken: trail.Steps) -> Iterator[Finding]:
    """Learning rates: one ratio throughout is the rate, a changing one the schedule."""
    both = [(a.step, a.lr[0], b.lr[0]) for a, b in taken if a.lr and b.lr]
    off = [(k, x, y) for k, x, y in both if abs(y - x) > 1e-6 * max(abs(x), abs(y))]
    if not off:
        return
    step, x, y = off[0]
    ratios = [y / x for _, x, y in off if x]
    constant = len(off) == len(both) and ratios and np.ptp(ratios) <= 1e-3 * abs(ratios[0])
    is_set = _set_apart(pair, "optimiser.", "steps", "epochs", "lr_scheduler", "warmup")
    words = f"learning rate from step {step} on: {x:.4g} in A, {y:.4g} in B"
    yield Finding(
        RUNG,
        "effect" if is_set else "factor",
        "optimiser" if constant else "schedule",
        "optimiser.lr" if constant else f"step {step}",
        words + (f" ({ratios[0]:.4g} times throughout)" if constant else ""),
        step=step,
        value=x,
        other=y,
        unit="learning rate",
        swap=Swap("optimiser" if constant else "schedule", ("optimiser.lr",), step),
    )


def _base(pair: Pair) -> Iterator[Finding]:
    """A frozen base keeps its digest, merges apart."""
    found = {}
    for name, side in pair.sides:
        merged = {*trail.when(trail.during(side, trail.TURNS))}
        merged |= {step + 1 for step in merged}
        found[name] = [step for step in trail.moves(side.steps) if step not in merged]
    for name, other, side in (("A", "B", pair.a), ("B", "A", pair.b)):
        if found[name] and not found[other]:
            shown = _base_trained(pair)
            yield Finding(
                RUNG,
                "effect" if shown else "factor",
                "trainable",
                "base weights",
                f"the base of {name} moves from step {found[name][0]} on, without a merge: it is "
                f"not frozen; that of {other} stays as it is",
                step=found[name][0],
                value=float(len(found[name])),
                unit="steps that move it",
                where=side.steps[0].where,
                fix="freeze the base (requires_grad = False) after loading it",
                swap=None if shown else Swap("trainable"),
            )


def _base_trained(pair: Pair) -> bool:
    """Whether snapshots say so too: then rung 4 names it."""
    counts = [
        max((shot.trainable.get("base", 0) for shot in side.snapshots), default=0) > 0
        for _, side in pair.sides
    ]
    return counts[0] != counts[1]


def _turns(pair: Pair) -> Iterator[Finding]:
    """Merges and resets between steps, on one side only or at other steps."""
    events = [trail.during(side, trail.TURNS) for _, side in pair.sides]
    last = min(max(each.step for each in side.steps) for _, side in pair.sides)
    a, b = ([step for step in trail.when(each) if step < last] for each in events)
    if a == b:
        return
    kinds = {each.what for side in events for each in side}
    name = " and ".join(sorted(f"{kind}s" for kind in kinds))
    step = min({*a} ^ {*b})
    words = f"{name}: {trail.rhythm(a)} in A, {trail.rhythm(b)} in B"
    for letter, side, steps_of in (("A", pair.a, a), ("B", pair.b, b)):
        length = trail.epoch(pair, side)
        if length and steps_of and all(step % length == 0 for step in steps_of):
            words += f"; an epoch of {letter} is {counted(length, 'step')}"
    declared = [_declared(side) for _, side in pair.sides]
    words += "".join(
        f"; {letter} is set to {what}" for letter, what in zip("AB", declared, strict=True) if what
    )
    where = next(
        (each.where for side in events for each in side if each.step == step and each.where), None
    )
    yield Finding(
        RUNG,
        "factor",
        "schedule",
        f"step {step}",
        words,
        step=step,
        value=float(a[0]) if a else None,
        other=float(b[0]) if b else None,
        unit="first step",
        where=where,
        fix=f"give both the same rule for {name}",
        swap=Swap("schedule", (name,), step),
    )


def _declared(side: Evidence) -> str:
    """Settings of when to merge, as they stand."""
    told = [
        f"{key} {setting.value}"
        for key, setting in sorted(side.settings.items())
        if any(part in key for part in ("merge", "steps_per_iteration", "commit"))
        and isinstance(setting.value, int | float | str)
    ]
    return ", ".join(told[:4])


def _losses(gaps: tuple[trail.Gap, ...]) -> Iterator[Finding]:
    over = [gap for gap in gaps if gap.over]
    if over:
        gap = over[0]
        words = (
            f"losses part at step {gap.step} ({len(over)} of {counted(len(gaps), 'step')} differ)"
        )
        yield Finding(RUNG, "effect", "unknown", f"step {gap.step}", words, step=gap.step,
                      value=gap.value, floor=gap.floor, unit="relative")  # fmt: skip


def _optimiser(pair: Pair, taken: trail.Steps, findings: list[Finding]) -> Iterator[Finding]:
    """Equal batches, rates and gradients, and another update: what the optimiser does with them."""
    if any(each.nature == "factor" for each in findings) or held(pair):
        return  # rung 4 says that some modules do not move at all
    limit = max(100 * noise.floor(pair, "loss").value, 1e-3)
    for a, b in taken:
        given = a.batch and a.batch == b.batch and a.lr and a.lr == b.lr
        if not given or not (a.grad_norm and b.grad_norm and a.update_norm and b.update_norm):
            return
        if abs(b.grad_norm / a.grad_norm - 1) > limit:
            return
        if abs(b.update_norm / a.update_norm - 1) > limit:
            yield Finding(
                RUNG,
                "effect" if _set_apart(pair, "optimiser.") else "factor",
                "optimiser",
                f"step {a.step}",
                f"the same gradient and rate give another update from step {a.step} on: norm "
                f"{a.update_norm:.4g} in A, {b.update_norm:.4g} in B",
                step=a.step,
                value=b.update_norm / a.update_norm,
                other=1.0,
                unit="times A's norm",
                swap=Swap("optimiser", step=a.step),
            )
            return


def _set_apart(pair: Pair, *prefixes: str) -> bool:
    """Whether a setting of such a name differs: then rung 1 names it."""
    keys = {key for _, side in pair.sides for key in side.settings if key.startswith(prefixes)}
    settings = [side.settings for _, side in pair.sides]
    return any(
        key in settings[0]
        and key in settings[1]
        and settings[0][key].value != settings[1][key].value
        for key in keys
    )


def _loss_outcome(gaps: tuple[trail.Gap, ...]) -> Iterator[Outcome]:
    if not gaps:
        return
    worst = max(gaps, key=lambda gap: math.inf if math.isnan(gap.value) else gap.value / gap.floor)
    over = sum(gap.over for gap in gaps)
    words = (
        f"training loss differs in {over} of {counted(len(gaps), 'step')}, by {worst.value:.2g} at "
        f"step {worst.step} (floor {worst.floor:.1g})"
    )
    yield Outcome("loss", worst.value, worst.floor, "relative", words, over, len(gaps), MOVED)


def _adapter_outcome(pair: Pair) -> Iterator[Outcome]:
    """The trained updates, whatever their factors."""
    if (found := trail.comparable(pair)) is None:
        return
    a, b = found
    floor = ADAPTERS.get(noise.dtype_of(pair), 5e-2)
    both = list(adapted(a, b))
    broken = sum(math.isfinite(x.norm_update) != math.isfinite(y.norm_update) for _, x, y in both)
    if broken:
        words = (
            f"trained updates are not finite at {broken} of {counted(len(both), 'module')}, "
            f"on one side only, after step {a.step}"
        )
        yield Outcome("adapter", math.nan, floor, "relative", words, broken, len(both), MOVED)
        return
    apart, size = [], []
    for _, x, y in both:
        one, other = factors(pair.a, x), factors(pair.b, y)
        if one is None or other is None or one.shape != other.shape:
            continue
        one, other = one.scaled(path_scale(x)), other.scaled(path_scale(y))
        apart.append(algebra.distance(one, other))
        size.append(algebra.norm(one))
    if not apart or not np.linalg.norm(size):
        return
    value = float(np.linalg.norm(apart) / np.linalg.norm(size))
    words = (
        f"trained updates of {counted(len(apart), 'module')} differ by {value:.2g} of their norm "
        f"after step {a.step}"
    )
    over = sum(bool(x > 3 * floor * y) for x, y in zip(apart, size, strict=True))
    yield Outcome("adapter", value, floor, "relative", words, over, len(apart), MOVED)


def _more_steps(pair: Pair) -> Iterator[Outcome]:
    """Training that goes on in one side; one that was cut short says so itself."""
    a, b = (max(each.step for each in side.steps) for _, side in pair.sides)
    ended = all(side.about.get("status", "finished") == "finished" for _, side in pair.sides)
    if a != b and ended:
        longer = "A" if a > b else "B"
        words = f"training goes on in {longer} after step {min(a, b)}, to step {max(a, b)}"
        yield Outcome("steps", float(abs(a - b)), 0.0, "steps", words, rungs=(1, RUNG))


def _equal(pair: Pair, taken: trail.Steps, gaps: tuple[trail.Gap, ...]) -> Iterator[str]:
    count = len(taken)
    if all(a.batch and a.batch == b.batch for a, b in taken):
        yield f"batches equal: {count} of {counted(count, 'step')}"
    if all(a.lr and a.lr == b.lr for a, b in taken):
        yield f"learning rates equal: {counted(count, 'step')}"
    if gaps and not any(gap.over for gap in gaps):
        largest = max(gap.value for gap in gaps)
        steps = counted(len(gaps), "step")
        yield f"training losses equal within noise: {steps} (apart by {largest:.1e})"
    still = [side for _, side in pair.sides if any(s.base for s in side.steps)]
    if len(still) == 2 and not any(trail.moves(side.steps) for side in still):
        yield "the base stays frozen in both"
    events = [trail.when(trail.during(side, trail.TURNS)) for _, side in pair.sides]
    if events[0] and events[0] == events[1]:
        yield f"merges and resets equal: {trail.rhythm(events[0])}"


def _curves(pair: Pair, taken: trail.Steps) -> dict[str, Any]:
    return {
        "steps": {
            "step": [a.step for a, _ in taken],
            "a": [_plain(minimised(pair.a, a)) for a, _ in taken],
            "b": [_plain(minimised(pair.b, b)) for _, b in taken],
            "name": "loss",
        }
    }


def _plain(loss: float | None) -> float:
    return math.nan if loss is None else loss
