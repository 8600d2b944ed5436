"""What training starts from: the norms of fresh factors, dropout, and what may move at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from weft.diagnose.compare import trail
from weft.diagnose.compare.places import group, number
from weft.diagnose.finding import Finding, Swap
from weft.diagnose.rungs.compared import initial, training
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.runs.evidence import AdapterModule, Snapshot

RUNG = 4

INIT = 0.05
"""Ratio of norms, as a logarithm, below which two random starts count as of one size."""

Modules = Mapping[str, tuple[AdapterModule, AdapterModule]]


def starts(pair: Pair, of_a: Snapshot, of_b: Snapshot, both: Modules) -> Iterator[Finding]:
    """Norms of the factors before the first step."""
    if not (initial(of_a) and initial(of_b) and training(pair)):
        return
    for factor, norms in (
        ("A", {name: (x.norm_a, y.norm_a) for name, (x, y) in both.items()}),
        ("B", {name: (x.norm_b, y.norm_b) for name, (x, y) in both.items()}),
    ):
        adjusted = {
            name: y / x * np.sqrt(both[name][0].rank / both[name][1].rank)
            for name, (x, y) in norms.items()
            if x > 0 and y > 0
        }
        off = _off(adjusted, both)
        zero = {
            name: norms[name] for name in norms if (norms[name][0] == 0) != (norms[name][1] == 0)
        }
        if zero:
            names = list(zero)
            letter = "A" if zero[names[0]][0] == 0 else "B"
            yield _start(
                of_b,
                names,
                both,
                f"the factor {factor} of each module starts at zero in {letter} and not in "
                f"{'B' if letter == 'A' else 'A'}, at {group(names, list(both))}",
                0.0 if letter == "B" else None,
            )
        elif off:
            ratio = float(np.median(list(off.values())))
            middle = [float(np.median([norms[name][i] for name in off])) for i in (0, 1)]
            times = (
                f"{number(1 / ratio)} times smaller"
                if ratio < 1
                else f"{number(ratio)} times larger"
            )
            place = group(list(off), list(both))
            yield _start(
                of_b,
                list(off),
                both,
                f"the factor {factor} of each module starts {times} in B than in A at {place}: "
                f"norm {number(middle[0])} in A, {number(middle[1])} in B (median)",
                ratio,
            )


def _off(ratios: Mapping[str, float], both: Modules) -> dict[str, float]:
    """Modules whose norms differ by more than other draws make them differ.

    The logarithm of the ratio of two norms of n normal numbers has a standard deviation of about
    1 / sqrt(n); five of them is more than chance in any of many modules.
    """
    count = {name: both[name][0].rank * both[name][0].shape[1] for name in ratios}
    logs = {name: float(np.log(ratio)) for name, ratio in ratios.items()}
    if logs:
        together = abs(float(np.median(list(logs.values()))))
        if together > max(INIT, 5 / np.sqrt(sum(count.values()))):
            return dict(ratios)
    return {
        name: ratios[name]
        for name, log in logs.items()
        if abs(log) > max(2 * INIT, 5 / np.sqrt(count[name]))
    }


def _start(
    of_b: Snapshot, names: Sequence[str], both: Modules, words: str, ratio: float | None
) -> Finding:
    return Finding(
        RUNG,
        "factor",
        "init",
        group(names, list(both)),
        words,
        value=ratio,
        other=1.0,
        unit="times A's norm",
        where=of_b.where,
        fix="start both from the same distribution",
        swap=Swap("init", tuple(names) if len(names) < len(both) else ()),
    )


def dropouts(pair: Pair, both: Modules) -> Iterator[Finding]:
    """Rates of dropout before A: a cause in training only."""
    rates = {
        name: (x.dropout, y.dropout) for name, (x, y) in both.items() if x.dropout != y.dropout
    }
    if not rates:
        return
    place = group(list(rates), list(both))
    a, b = next(iter(rates.values()))
    words = f"the adapter's dropout is {number(a)} in A and {number(b)} in B at {place}"
    trains = training(pair)
    yield Finding(
        RUNG,
        "factor" if trains else "harmless",
        "settings",
        place if trains else "adapter.dropout",
        words if trains else f"{words}; it acts in training only",
        value=b,
        other=a,
        unit="dropout",
    )


def trainable(
    pair: Pair, of_a: Snapshot | None, of_b: Snapshot | None, both: Modules
) -> Iterator[Finding]:
    """Counts of trainable parameters: a cause in training, and none in evaluation."""
    counts = [None if of is None else of.trainable for of in (of_a, of_b)]
    for (letter, side), of, count in zip(pair.sides, (of_a, of_b), counts, strict=True):
        if of is not None and count and not _tried(side) and not count.get("adapter", 0):
            place = group(list(of.modules), list(of.modules))
            yield Finding(
                RUNG,
                "harmless",
                "trainable",
                place,
                f"0 trainable parameters in {letter}: normal where nothing is trained, and the "
                f"adapter is attached at {place}",
            )
    yield from _held(pair, both)
    a, b = counts[0], counts[1]
    if not a or not b or of_b is None or not (_tried(pair.a) and _tried(pair.b)):
        return
    frozen = _flagged(both)
    for part, what, places in (
        ("adapter", "the adapter", frozen or list(both)),
        ("base", "the base", []),
    ):
        x, y = a.get(part, 0), b.get(part, 0)
        other_ranks = any(m.rank != n.rank for m, n in both.values())
        if x == y or (part == "adapter" and not frozen and (other_ranks or (x and y))):
            continue
        place = group(places, list(both)) if places else "base weights"
        never = [name for name, side in pair.sides if not side.steps]
        stuck = f"; {never[0]} takes no training step" if never else ""
        yield Finding(
            RUNG,
            "factor",
            "trainable",
            place,
            f"{x:,} parameters of {what} are trained in A and {y:,} in B ({place}){stuck}",
            value=float(y),
            other=float(x),
            unit="parameters",
            where=of_b.where,
            fix="freeze the base after loading the adapter (requires_grad = False)"
            if part == "base"
            else "load the adapter as trainable, and freeze none of its modules",
            swap=Swap("trainable"),
        )


def _flagged(both: Modules) -> list[str]:
    """Modules that are set to be trained on one side only."""
    return [name for name, (x, y) in both.items() if x.trainable != y.trainable]


def _held(pair: Pair, both: Modules) -> Iterator[Finding]:
    """Modules that no step moves on one side, whatever is set; those of the other side move."""
    for letter, names in held(pair).items():
        side, other = (pair.a, "B") if letter == "A" else (pair.b, "A")
        names = [name for name in names if name in both]
        if not names or _flagged(both):
            continue
        place = group(names, list(both))
        yield Finding(
            RUNG,
            "factor",
            "trainable",
            place,
            f"{place} stay in {letter} as they were, bit by bit{_reached(side, names)}; those of "
            f"{other} are trained",
            value=0.0 if letter == "B" else float(len(names)),
            other=float(len(names)) if letter == "B" else 0.0,
            unit="modules that move",
            where=side.steps[0].where,
            fix=f"unfreeze the adapter in {letter}, detach nothing of it, and give the optimiser "
            "all of its factors",
            swap=Swap("trainable"),
        )


def held(pair: Pair) -> dict[str, list[str]]:
    """By side, modules whose factors never move although they should, and move on the other."""
    moved = {letter: _moved(side) for letter, side in pair.sides}
    found = {}
    for (letter, side), other in zip(pair.sides, "BA", strict=True):
        still = {name for name, moves in moved[letter].items() if not moves}
        found[letter] = [name for name, moves in moved[other].items() if moves and name in still]
        if not _at_work(side):
            found[letter] = []
    return {letter: names for letter, names in found.items() if names}


def _moved(side: Evidence) -> dict[str, bool]:
    """Whether any factor of a module was another one after a step than at the start.

    Of nothing where adapters were merged or drawn anew between steps: that moves them, too.
    """
    start = side.used()
    if start is None or start.step or trail.during(side, trail.TURNS):
        return {}
    later = [shot for shot in side.snapshots if shot.model == start.model and shot.step]
    digests = {
        name: {(m.digest_a, m.digest_b) for shot in later if (m := shot.modules.get(name))}
        for name, at_start in start.modules.items()
        if at_start.active and at_start.seen_scale != 0
    }
    return {
        name: seen != {(start.modules[name].digest_a, start.modules[name].digest_b)}
        for name, seen in digests.items()
        if seen
    }


def _at_work(side: Evidence) -> bool:
    """Whether a step was to move the adapter: of a loss, at a rate, with gradients that are finite.

    What was not recorded is taken as such.
    """
    return any(
        (not step.lr or any(step.lr))
        and (step.loss is None or (math.isfinite(step.loss) and step.loss != 0))
        and step.supervised != 0
        and all(map(math.isfinite, (step.grad_norm or 0.0, *step.grad_norms.values())))
        for step in side.steps
    )


def _reached(side: Evidence, names: Sequence[str]) -> str:
    """Whether gradients reach some modules, in words; empty where none was recorded."""
    factors = {f"{name}{end}" for name in names for end in ("", ".A", ".B")}
    norms = [n for step in side.steps for name, n in step.grad_norms.items() if name in factors]
    if not norms:
        return ""
    return ", though gradients reach them" if any(norms) else ": no gradient reaches them"


def _tried(side: Evidence) -> bool:
    """Whether it trains, or means to: gradients are on and the model is in training mode."""
    return bool(side.steps) or any(each.grad and each.training for each in side.passes)
