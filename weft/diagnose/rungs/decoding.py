"""Rung 8: decoding: whether each side alone gives every step its whole text, then both compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Any

import numpy as np

from weft.diagnose.compare import noise
from weft.diagnose.compare.align import Said, completions
from weft.diagnose.compare.context import FIXES, LABELS, Alone, Fault, all_steps, check
from weft.diagnose.compare.divergence import divergence, truncated_kl
from weft.diagnose.finding import Finding, Looked, Outcome, Swap
from weft.diagnose.rungs.control import idle
from weft.diagnose.sides.decoded import Step, steps_of
from weft.diagnose.sides.evidence import Pair
from weft.diagnose.words import counted

RUNG = 8


def look(pair: Pair) -> Looked:
    """Compare what steps were given, then distributions while both sides say the same."""
    if not any(side.generations for _, side in pair.sides):
        return Looked(unseen=("decoding: neither side generated text",))
    alone = {name: check(side) for name, side in pair.sides}
    findings = _unlike(alone)
    factors = [each for each in findings if each.nature == "factor"]
    since = min((each.step or 1 for each in factors), default=None)
    looked = _across(pair, since, explained=bool(findings) or any(idle(s) for _, s in pair.sides))
    if looked.equal:  # measured where it acts
        findings = tuple(replace(each, nature="harmless") for each in findings)
    equal = list(looked.equal)
    for name, side in pair.sides:
        if not alone[name] and (count := sum(len(each) for each in all_steps(side))):
            equal.append(
                f"{name}: {counted(count, 'decoding step')} were each given the whole text so far"
            )
    for fault in alone["A"]:
        if any(_like(fault, other) for other in alone["B"]):
            equal.append(f"in both sides alike, {fault.words}")
    return Looked(
        (*findings, *looked.findings), tuple(equal), looked.unseen, looked.outcome, looked.curves
    )


def _like(one: Alone, other: Alone) -> bool:
    return (one.fault, one.size, one.step) == (other.fault, other.size, other.step) or (
        one.fault == other.fault == "lost"
    )


def _unlike(alone: Mapping[str, tuple[Alone, ...]]) -> tuple[Finding, ...]:
    """Faults of one side that the other has not."""
    return tuple(
        Finding(
            RUNG,
            "effect" if fault.fault == "start" else "factor",  # of rung 2, which reads prompts
            LABELS[fault.fault],
            f"decoding step {fault.step} on, {counted(fault.rows, 'completion')}",
            f"in {name}, {fault.words}; not so in {other}",
            step=fault.step,
            value=fault.size,
            floor=0.0,
            unit="positions",
            where=fault.where,
            fix=FIXES[fault.fault],
            swap=SWAPS[fault.fault],
        )
        for name, other in (("A", "B"), ("B", "A"))
        for fault in alone[name]
        if not any(_like(fault, each) for each in alone[other])
    )


SWAPS: Mapping[Fault, Swap | None] = {
    "lost": Swap("context"), "cut": Swap("context"), "more": Swap("context"),
    "position": Swap("positions"), "padded": Swap("positions"), "start": None,
}  # fmt: skip


@dataclass(frozen=True)
class Gap:
    """How far apart a step of both sides is."""

    prompt: int
    step: int
    kl: float  # nats
    whole: bool = True  # of the whole vocabulary; else a lower bound, of its own token alone


def _across(pair: Pair, since: int | None, explained: bool) -> Looked:
    """Distributions of the same text at the same step, on both sides.

    Where a cause is known, what it does is what decoding is apart by `since` its first step beyond
    what the prompt explains; steps of other texts are used if there are no others.
    """
    rows = completions(pair).pairs
    limit = noise.floor(pair, "nats").value
    gaps = list(_gaps(rows, same_text=True))
    if since is not None and not any(gap.step >= since and gap.step > 1 for gap in gaps):
        gaps = list(_gaps(rows, same_text=False))
    first = [gap for gap in gaps if gap.step == 1]
    later = [gap for gap in gaps if gap.step > 1 and gap.step >= (since or 1)]
    curve = _curve(gaps, limit)
    if not later:
        why = "no step after the same text has logits on both sides"
        return Looked(unseen=(f"decoding across sides: {why}",), curves=curve)
    before = float(np.mean([gap.kl for gap in first])) if first else 0.0
    mean = float(np.mean([gap.kl for gap in later]))
    of_prompts: dict[int, list[float]] = defaultdict(list)
    for gap in later:
        of_prompts[gap.prompt].append(gap.kl)
    value = mean if since is None else max(mean - before, 0.0)
    more = "" if since is None else f", {value:.2g} more than at the prompt"
    bounds = sum(not gap.whole for gap in later)
    outcome = Outcome(
        "kl decode",
        value,
        limit,
        "nats",
        f"mean KL in {counted(len(later), 'decoding step')} of {counted(len(of_prompts), 'prompt')}"
        f": {mean:.2g} nats{more} (floor {limit:.1g}"
        + (
            f"; at least, in {counted(bounds, 'step')} of which one token is known)"
            if bounds
            else ")"
        ),
        prompts=sum(bool(np.mean(kls) > 3 * limit) for kls in of_prompts.values()),
        of=len(of_prompts),
        rungs=tuple(range(RUNG + 1)) if since is None else (RUNG,),
    )
    if mean <= limit:
        words = (
            f"decoding equal within noise: {counted(len(later), 'step')} (mean KL {mean:.1e} nats)"
        )
        return Looked(equal=(words,), outcome=(outcome,), curves=curve)
    lengths = {number: len(a.prompt) for number, (a, _) in enumerate(rows, start=1)}
    finding = _only_in_decoding(first, later, limit, explained, lengths)
    return Looked(finding, outcome=(outcome,), curves=curve)


def _gaps(rows: Sequence[tuple[Said, Said]], same_text: bool) -> Iterator[Gap]:
    """Steps of both sides, while the text so far is the same if asked."""
    for number, (a, b) in enumerate(rows, start=1):
        if same_text and a.key != b.key:
            continue
        both = zip(steps_of(a.side, a.of, a.number), steps_of(b.side, b.of, b.number), strict=False)
        for x, y in both:
            if same_text and x.text[len(a.prompt) :] != y.text[len(b.prompt) :]:
                break
            gap = _gap(number, x, y)
            if gap is not None and not np.isnan(gap.kl):
                yield gap


def _gap(prompt: int, x: Step, y: Step) -> Gap | None:
    """From logits, else from the probability of a token that both chose.

    That is known to rounding in float32, so one near 0 or 1 says nothing.
    """
    if x.logits is not None and y.logits is not None and x.logits.shape == y.logits.shape:
        return Gap(prompt, x.number, float(divergence(x.logits[None], y.logits[None]).kl[0]))
    p, q = x.probability, y.probability
    if (
        p is None
        or q is None
        or x.token != y.token
        or not KNOWN < min(p, q) <= max(p, q) < 1 - KNOWN
    ):
        return None
    return Gap(prompt, x.number, truncated_kl({0: log(p)}, {0: log(q)}), whole=False)


KNOWN = 0.01
"""Probabilities nearer to 0 or 1 than this are not compared."""


def _only_in_decoding(
    first: Sequence[Gap],
    later: Sequence[Gap],
    floor: float,
    explained: bool,
    lengths: Mapping[int, int],
) -> tuple[Finding, ...]:
    """The prompt is read alike, and steps after it are not. `lengths` are the prompts'."""
    over = [gap for gap in later if gap.kl > 3 * floor]
    if not over:
        return ()
    gap = min(over, key=lambda each: (each.step, each.prompt))
    alike = bool(first) and max(each.kl for each in first) <= floor
    short = ""
    words = (
        f"decoding differs from prompt {gap.prompt}, token {gap.step} on ({len(over)} of "
        f"{counted(len(later), 'step')})"
    )
    if alike:
        words += ", although the prompt gives the same distribution: "
        short = _shorter(later, floor, lengths)
        words += f"only {short}: padding is attended" if short else "what the cache or positions do"
    return (
        Finding(
            RUNG,
            "factor" if alike and not explained else "effect",
            ("mask" if short else "cache") if alike else "unknown",
            f"prompt {gap.prompt}, token {gap.step}",
            words,
            step=gap.step,
            value=gap.kl,
            floor=floor,
            unit="nats",
            swap=Swap("context") if alike and not explained else None,
        ),
    )


def _shorter(later: Sequence[Gap], floor: float, lengths: Mapping[int, int]) -> str:
    """The rows that differ, if those are the ones that are padded and no longest row does."""
    wrong = {gap.prompt for gap in later if gap.kl > 3 * floor}
    right = {gap.prompt for gap in later} - {gap.prompt for gap in later if gap.kl > floor}
    seen = {gap.prompt for gap in later}
    order = sorted(lengths)
    for size in range(2, len(order) + 1):  # prompts of a batch follow one another
        batches = [order[at : at + size] for at in range(0, len(order), size)]
        whole = {n for each in batches for n in each if lengths[n] == max(lengths[m] for m in each)}
        if wrong and right and seen & whole == right and seen - whole == wrong:
            return f"in {counted(len(wrong), 'row')} shorter than the longest"
    return ""


def _curve(gaps: Sequence[Gap], floor: float) -> dict[str, Any]:
    kls: dict[int, list[float]] = defaultdict(list)
    for gap in gaps:
        kls[gap.step].append(gap.kl)
    steps = sorted(kls)
    means = [float(np.mean(kls[step])) for step in steps]
    return {"decode": {"step": steps, "kl": means, "floor": floor}} if steps else {}
