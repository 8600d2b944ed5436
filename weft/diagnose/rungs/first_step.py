"""Rung 10: the first training step: its start, its loss, its gradients, its rate, its update."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import numpy as np

from weft.diagnose.compare import noise, trail
from weft.diagnose.compare.align import adapted, step_rows, steps
from weft.diagnose.finding import Finding, Looked, Swap
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.diagnose.sides.objective import Tokens, explained, minimised, tokens_of
from weft.diagnose.words import counted
from weft.runs.evidence import AdapterModule, Snapshot, TrainStep

RUNG = 10

SPREAD = 0.02
"""Gradients are off by one factor where module by module it varies by less than this."""


PROPORTIONAL = 2e-3
"""Losses and gradients are off by one number where they agree on it to this part, and to a third
of what that number is away from 1."""


def look(pair: Pair) -> Looked:
    """Compare the first step that both sides took, cause by cause in the order they act."""
    found = steps(pair).pairs
    if not found:
        without = [name for name, side in pair.sides if not side.steps]
        why = f"no training step in {' and '.join(without)}" if without else "no step in common"
        return Looked(unseen=(f"first training step: {why}",))
    a, b = found[0]
    looks = [_start(pair, a, b), _labels(pair, a, b), _loss(pair, a, b), _gradients(pair, a, b)]
    looks.append(_rate(pair, a, b))
    return Looked(
        findings=tuple(f for each in looks for f in each.findings),
        equal=tuple(words for each in looks for words in each.equal),
        unseen=tuple(words for each in looks for words in each.unseen),
    )


def _start(pair: Pair, a: TrainStep, b: TrainStep) -> Looked:
    """Random numbers that the start and dropout were drawn with; norms are for rung 4."""
    drawn = _other_draws(pair)
    dropped = any(each.grad and each.dropouts for _, side in pair.sides for each in side.passes)
    other_state = None not in (a.random, b.random) and a.random != b.random
    if drawn is False and not (dropped and other_state):
        return Looked(equal=("training starts from the same adapter, bit by bit",))
    if not drawn and not (dropped and other_state):
        return Looked()
    seeds = [{each.library: each.seed for each in side.seeds} for _, side in pair.sides]
    settled = [side.settings.get("seed") for _, side in pair.sides]
    shown = [
        ", ".join(f"{library} seed {seed}" for library, seed in sorted(own.items()))
        or (f"seed {value.value}" if value is not None else "no seed")
        for own, value in zip(seeds, settled, strict=True)
    ]
    what = " and ".join(
        words
        for words, is_so in (("the fresh adapter", drawn), ("dropout", dropped and other_state))
        if is_so
    )
    if shown[0] == shown[1] and "no seed" not in shown:
        words = f"{what}: drawn with other numbers, though seeds are equal ({shown[0]})"
    else:
        words = f"{what}: drawn with other numbers, {shown[0]} in A and {shown[1]} in B"
    lacking = [name for name, own in zip("AB", shown, strict=True) if own == "no seed"]
    return Looked(
        (
            Finding(
                RUNG,
                "factor",
                "seed",
                "seed",
                words,
                step=a.step,
                where=b.where,
                fix=f"set a seed in {' and '.join(lacking)}" if lacking else "set the same seed",
                swap=Swap("seed"),
            ),
        )
    )


def _fresh(side: Evidence) -> Snapshot | None:
    """The adapter before the first step."""
    of = side.used()
    return of if of is not None and not of.step else None


def _other_draws(pair: Pair) -> bool | None:
    """Whether fresh factors of one size hold other numbers; None where sizes or norms differ."""
    a, b = _fresh(pair.a), _fresh(pair.b)
    if a is None or b is None:
        prints = [
            side.about.get("fingerprints", {}).get("initial_adapter") for _, side in pair.sides
        ]
        return False if prints[0] is not None and prints[0] == prints[1] else None
    both = [(x, y) for _, x, y in adapted(a, b)]
    if not both or any(not _alike(x, y) for x, y in both):
        return None
    return any(x.digest_a != y.digest_a or x.digest_b != y.digest_b for x, y in both)


def _alike(x: AdapterModule, y: AdapterModule) -> bool:
    """Drawn in one way: of one size, with norms that chance alone sets apart, and B alike."""
    if x.rank != y.rank or x.shape != y.shape or not x.norm_a or not y.norm_a:
        return False
    both_zero = x.norm_b == y.norm_b == 0
    return both_zero and abs(math.log(x.norm_a / y.norm_a)) < 0.2


def _labels(pair: Pair, a: TrainStep, b: TrainStep) -> Looked:
    """What is supervised in the same rows."""
    if not (a.batch and a.batch == b.batch):
        return Looked()
    if a.labels and a.labels == b.labels:
        count = "" if a.supervised is None else f": {counted(a.supervised, 'supervised token')}"
        return Looked(equal=(f"labels of step {a.step} equal{count}",))
    if not (a.labels and b.labels):
        return Looked()
    shown = any(
        x.labels is not None and y.labels is not None for x, y in step_rows(pair, a, b).pairs
    )
    counts = ", ".join(
        f"{'all' if n is None else f'{n:,}'} in {name}"
        for name, n in (("A", a.supervised), ("B", b.supervised))
    )
    return Looked(
        (
            Finding(
                RUNG,
                "effect" if shown else "factor",  # rung 2 reads them where they were recorded
                "labels",
                f"step {a.step}",
                f"the same rows have other labels; supervised tokens: {counts}",
                step=a.step,
                value=None if b.supervised is None else float(b.supervised),
                other=None if a.supervised is None else float(a.supervised),
                unit="tokens",
                swap=None if shown else Swap("labels"),
            ),
        )
    )


def _loss(pair: Pair, a: TrainStep, b: TrainStep) -> Looked:
    """What is minimised on the same rows and labels."""
    x, y = minimised(pair.a, a), minimised(pair.b, b)
    if x is None or y is None:
        return Looked(unseen=(f"loss of step {a.step}: not recorded",))
    if not (math.isfinite(x) and math.isfinite(y)):
        return _not_finite(a, b, x, y)
    limit = noise.floor(pair, "loss").value
    gap = abs(y - x) / max(abs(x), 1e-12)
    if gap <= limit:
        words = f"loss of step {a.step} equal within noise: {x:.6g} (apart by {gap:.1e})"
        return Looked(equal=(words,))
    ratio = y / x if x else math.inf
    if (c := trail.restated(pair, steps(pair).pairs)) != 1:
        words = f"losses are {c:.4g} times those of A while all gradients are equal: one objective"
        return Looked((Finding(RUNG, "harmless", "normaliser", f"step {a.step}", words, value=c),))
    tolerance = max(limit, min(1e-3, gap / 3))  # what explains one loss must not explain both
    means = _means(pair, a, b, x, y, tolerance) or _proportional(pair, a, b, ratio)
    words = f"loss of step {a.step}: {x:.6g} in A, {y:.6g} in B (ratio {ratio:.4g})"
    found = Finding(
        RUNG,
        "factor" if means else "effect",
        "normaliser" if means else "unknown",
        f"step {a.step}",
        f"{words}: {means}" if means else words,
        step=a.step,
        value=gap,
        floor=limit,
        unit="relative",
        where=b.where,
        fix="average over the supervised tokens of the whole step on both sides" if means else None,
        swap=Swap("normaliser") if means else None,
    )
    return Looked((found,))


def _means(pair: Pair, a: TrainStep, b: TrainStep, x: float, y: float, tolerance: float) -> str:
    """Which means A and B take of the same tokens, in words; empty where that explains nothing."""
    if a.batch != b.batch or (a.labels and b.labels and a.labels != b.labels):
        return ""
    tokens_a, tokens_b = tokens_of(pair.a, a), tokens_of(pair.b, b)
    if tokens_a and tokens_b:
        totals = [sum(each.total for each in tokens) for tokens in (tokens_a, tokens_b)]
        if abs(totals[1] - totals[0]) > tolerance * abs(totals[0]):
            return ""  # the tokens themselves have other nats
    of_a, of_b = explained(x, tokens_a, tolerance), explained(y, tokens_b, tolerance)
    if of_a and of_b and not {*of_a} & {*of_b}:
        return f"of {_of_tokens(tokens_a, tokens_b)}, A takes {of_a[0]}, B {of_b[0]}"
    if tokens_a and tokens_b and bool(of_a) != bool(of_b):
        one, other, mean = ("A", "B", of_a) if of_a else ("B", "A", of_b)
        of = _of_tokens(tokens_a, tokens_b)
        return f"of {of}, {one} takes {mean[0]}, {other} none that is known{_ratio(x, y, a, b)}"
    if not tokens_a and not tokens_b:
        return _ratio(x, y, a, b).removeprefix(": ")
    return ""


def _of_tokens(a: Sequence[Tokens], b: Sequence[Tokens]) -> str:
    """`the same 52 supervised tokens (2 forwards in A, 4 in B)`."""
    said = f"the same {counted(sum(each.count for each in a), 'supervised token')}"
    if len(a) == len(b) == 1:
        return said
    return f"{said} ({counted(len(a), 'forward')} in A, {len(b)} in B)"


def _proportional(pair: Pair, a: TrainStep, b: TrainStep, ratio: float) -> str:
    """One number times everything: the loss and the gradient of every module alike.

    No difference in what is computed does that, only one in what the same sum is divided by.
    """
    same = a.batch and a.batch == b.batch and a.labels and a.labels == b.labels
    ratios = _gradient_ratios(a, b)
    off = [abs(each / ratio - 1) for each in ratios.values()] if ratio > 0 else []
    if not same or not off or max(off) > min(PROPORTIONAL, abs(ratio - 1) / 3):
        return ""
    if _other_draws(pair):
        return ""
    words = f"all gradients are {ratio:.4g} times those of A too, so the same sum is divided by"
    count = a.supervised / ratio if a.supervised else 0.0
    whole = abs(count - round(count)) < 1e-3 * count and round(count) > 0
    if whole:
        return f"{words} {round(count)} where A divides by {a.supervised} tokens"
    return f"{words} another number"


def _ratio(x: float, y: float, a: TrainStep, b: TrainStep) -> str:
    """A count that the ratio of two losses is."""
    ratio = y / x if x else math.inf
    counts = {"forwards in A": len(a.losses), "forwards in B": len(b.losses)}
    if a.supervised:
        counts["supervised tokens"] = a.supervised
    for name, count in counts.items():
        for value, words in ((count, f"{count} {name}"), (1 / count if count else 0, f"1/{count}")):
            if count > 1 and abs(ratio - value) <= SPREAD * value:
                of = "" if value == count else f" of {name}"
                return f": the ratio is {words}{of}"
    return ""


def _not_finite(a: TrainStep, b: TrainStep, x: float, y: float) -> Looked:
    if math.isfinite(x) == math.isfinite(y):
        return Looked(unseen=(f"loss of step {a.step}: not finite on either side",))
    words = f"loss of step {a.step}: {x:g} in A, {y:g} in B"
    more = " (a mean over no supervised token)" if 0 in (a.supervised, b.supervised) else ""
    return Looked(
        (Finding(RUNG, "effect", "overflow", f"step {a.step}", words + more, step=a.step),)
    )


def _gradients(pair: Pair, a: TrainStep, b: TrainStep) -> Looked:
    """Norms by module: one ratio everywhere is a scale, a start or a normaliser."""
    if not (a.batch and a.batch == b.batch):
        return Looked()
    limit = max(100 * noise.floor(pair, "loss").value, 1e-3)
    ratios = _gradient_ratios(a, b)
    if not ratios:
        return Looked(unseen=(f"gradients of step {a.step}: no norm above 0 on both sides",))
    off = {name: ratio for name, ratio in ratios.items() if abs(math.log(ratio)) > limit}
    if not off:
        words = f"gradient norms of step {a.step} equal within noise: {len(ratios)} of them"
        return Looked(equal=(words,))
    c = median(off.values())
    spread = float(np.std([math.log(ratio) for ratio in off.values()]))
    constant = len(off) == len(ratios) and spread < SPREAD
    first = max(off, key=lambda name: abs(math.log(off[name])))
    words = (
        f"gradients of step {a.step} are {c:.4g} times those of A at all {len(ratios)} modules"
        if constant
        else f"gradients of step {a.step} differ at {len(off)} of "
        f"{counted(len(ratios), 'module')}, most at {first} ({off[first]:.3g} times)"
    )
    found = Finding(
        RUNG,
        "effect",
        "unknown",
        f"all {len(ratios)} modules" if constant else first,
        words,
        step=a.step,
        value=c,
        other=1.0,
        unit="times A's norm",
    )
    return Looked((found,))


def _gradient_ratios(a: TrainStep, b: TrainStep) -> dict[str, float]:
    """By module; of all of them together where no more is known."""
    ratios = dict(_ratios(a.grad_norms, b.grad_norms))
    if not ratios and a.grad_norm and b.grad_norm:
        ratios = {"all": b.grad_norm / a.grad_norm}
    return ratios


def _ratios(a: Mapping[str, float], b: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    for name in a.keys() & b.keys():
        if a[name] > 0 and b[name] > 0 and math.isfinite(a[name] * b[name]):
            yield name, b[name] / a[name]


def _rate(pair: Pair, a: TrainStep, b: TrainStep) -> Looked:
    """What becomes of a gradient; settings that say why are for rung 1."""
    if a.update_norm is None or b.update_norm is None or not a.update_norm:
        return Looked()
    ratio = b.update_norm / a.update_norm
    if abs(ratio - 1) <= 1e-3:
        return Looked(equal=(f"update of step {a.step} equal in norm: {a.update_norm:.3g}",))
    words = f"the update of step {a.step} is {ratio:.4g} times that of A"
    found = Finding(
        RUNG,
        "effect",
        "optimiser",
        f"step {a.step}",
        words,
        step=a.step,
        value=ratio,
        other=1.0,
        unit="times A's norm",
    )
    return Looked((found,))
