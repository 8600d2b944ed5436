"""Rung 8: decoding. Each side alone first: does every step see the whole text so far? Then across.

Lost context is named by what a step was given (one token and no cache), and where the same token
was read alone elsewhere, by its distribution being that one.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from weft.diagnose import noise
from weft.diagnose.align import Said, completions
from weft.diagnose.decoded import Step, lone_tokens, steps_of
from weft.diagnose.divergence import divergence
from weft.diagnose.evidence import Evidence, Pair
from weft.diagnose.finding import Finding, Looked, Outcome, Swap
from weft.diagnose.labels import Label

RUNG = 8

Fault = Literal["lost", "cut", "more", "position"]

LABELS: dict[Fault, Label] = {
    "lost": "cache", "cut": "cache", "more": "cache", "position": "cache-pos",
}  # fmt: skip

Steps = Sequence[Step]


@dataclass(frozen=True)
class Alone:
    """What one side's decoding steps were given that they should not have been, or not given."""

    fault: Fault
    step: int  # the first one
    steps: int  # how many
    rows: int
    words: str
    size: float  # positions: how many are missing, too many, or off by
    where: str | None


def look(pair: Pair) -> Looked:
    """Compare what steps were given, then distributions while both sides say the same."""
    if not any(side.generations for _, side in pair.sides):
        return Looked(unseen=("decoding: neither side generated text",))
    alone = {name: check(side) for name, side in pair.sides}
    findings = _unlike(pair, alone)
    looked = _across(pair, bool(findings))
    equal = list(looked.equal)
    for name, side in pair.sides:
        if not alone[name] and (count := sum(len(each) for each in _all_steps(side))):
            equal.append(f"{name}: {count} decoding steps were each given the whole text so far")
    for fault in alone["A"]:
        if any(_like(fault, other) for other in alone["B"]):
            equal.append(f"in both sides alike, {fault.words}")
    return Looked(
        (*findings, *looked.findings), tuple(equal), looked.unseen, looked.outcome, looked.curves
    )


def check(side: Evidence) -> tuple[Alone, ...]:
    """What is wrong with one side's decoding by itself, one of each kind."""
    found: dict[Fault, list[tuple[Step, int]]] = defaultdict(list)
    for steps in _all_steps(side):
        kinds = [(fault, step, size) for step in steps for fault, size in _context(steps[0], step)]
        if not kinds:  # without its context, a step starts counting anew
            kinds = [("position", step, off) for step in steps if (off := _offset(steps[0], step))]
        for fault, step, size in kinds:
            found[fault].append((step, size))
    return tuple(
        Alone(
            fault,
            min(step.number for step, _ in each),
            len(each),
            len({(id(step.generation), step.row) for step, _ in each}),
            _words(fault, each, side),
            float(Counter(size for _, size in each).most_common(1)[0][0]),
            each[0][0].of.where or each[0][0].generation.where,
        )
        for fault, each in found.items()
    )


def _all_steps(side: Evidence) -> list[tuple[Step, ...]]:
    every = [
        steps_of(side, each, row) for each in side.generations for row in range(len(each.prompts))
    ]
    return [steps for steps in every if steps]


def _context(first: Step, step: Step) -> list[tuple[Fault, int]]:
    """What of the text so far a step did not see, or what it saw besides it."""
    width = len(step.text)
    if step.reached < width:
        lost = step.of.past == 0 and step.of.length == 1
        return [("lost" if lost else "cut", width - step.reached)]
    whole = step.of.past == 0
    due = first.reached + step.number - 1
    if not whole and step.reached > due:
        return [("more", step.reached - due)]
    if step.number == 1 and step.of.past > 0 and step.attended in (None, step.reached):
        fed_before = step.reached - max(width, step.of.length)
        if step.of.length >= width and fed_before > 0:
            return [("more", fed_before)]
    return []


def _offset(first: Step, step: Step) -> int:
    """By how much a step's position is off, counted on from the prompt's last one."""
    if step.number == 1 or first.position is None or step.position is None:
        return 0
    return step.position - (first.position + step.number - 1)


def _words(fault: Fault, each: Sequence[tuple[Step, int]], side: Evidence) -> str:
    step, size = each[0]
    count = f"{len(each)} decoding steps, from step {min(s.number for s, _ in each)} on"
    if fault == "lost":
        same = _as_if_alone([step for step, _ in each], side)
        return (
            f"context is lost: {count}, were given one token and no cache, where the text so far "
            f"has {len(step.text)} tokens and more{same}"
        )
    if fault == "cut":
        return (
            f"context is cut: {count}, saw {step.reached} positions where the text so far has "
            f"{len(step.text)} (the cache does not grow, or is cut)"
        )
    if fault == "more":
        return (
            f"{count}, saw {size} positions more than the text so far has (the cache holds other "
            "text, or the same text twice)"
        )
    sizes = Counter(off for _, off in each)
    if len(sizes) == 1:
        return f"positions are off by {size:+d} in {count}"
    return (
        f"positions do not count on from the prompt in {count}: off by {min(sizes):+d} to "
        f"{max(sizes):+d}"
    )


def _as_if_alone(steps: Steps, side: Evidence) -> str:
    """The positive sign of lost context: the same distribution after another text."""
    seen: dict[int, tuple[np.ndarray, int]] = {}
    for token, of, row in lone_tokens(side):
        logits = None if of.logits is None else side.array(of.logits)
        if logits is None or len(logits) <= row:
            continue
        if token in seen and seen[token][1] != of.index:
            apart = divergence(seen[token][0][None], logits[row][None])
            if apart.finite[0] and apart.kl[0] < 1e-4:
                return f"; after token {token} the distribution is that of the token alone"
        seen.setdefault(token, (logits[row], of.index))
    return ""


def _like(one: Alone, other: Alone) -> bool:
    return (one.fault, one.size, one.step) == (other.fault, other.size, other.step) or (
        one.fault == other.fault == "lost"
    )


def _unlike(pair: Pair, alone: dict[str, tuple[Alone, ...]]) -> tuple[Finding, ...]:
    """Faults of one side that the other has not."""
    found = []
    for name, other in (("A", "B"), ("B", "A")):
        for fault in alone[name]:
            if any(_like(fault, each) for each in alone[other]):
                continue
            found.append(
                Finding(
                    RUNG,
                    "factor",
                    LABELS[fault.fault],
                    f"decoding step {fault.step} on, {fault.rows} completions",
                    f"in {name}, {fault.words}; not so in {other}",
                    step=fault.step,
                    value=fault.size,
                    floor=0.0,
                    unit="positions",
                    where=fault.where,
                    fix=FIXES[fault.fault],
                    swap=Swap("context" if fault.fault != "position" else "positions"),
                )
            )
    return tuple(found)


FIXES: dict[Fault, str] = {
    "lost": "pass the cache of the step before (past_key_values), or the whole text each time",
    "cut": "keep the cache that each call returns, and pass it to the next",
    "more": "start every prompt with an empty cache, and feed only what is not in it",
    "position": "let positions count on: the number of real tokens before",
}


def _across(pair: Pair, explained: bool) -> Looked:
    """Distributions of the same text at the same step, on both sides."""
    rows = completions(pair).pairs
    limit = noise.floor(pair, "nats")
    found = list(_steps_across(rows, same_text=True))
    if explained and all(step == 1 for _, step, _ in found):
        found = list(_steps_across(rows, same_text=False))
    first, later = ([e for e in found if (e[1] == 1) == of_prompt] for of_prompt in (True, False))
    if not later:
        return Looked(
            unseen=("decoding across sides: no step of the same text has logits on both",)
        )
    kl_of = _by_prompt(later)
    before = float(np.mean([kl for _, _, kl in first])) if first else 0.0
    mean = float(np.mean([kl for _, _, kl in later]))
    value = max(mean - before, 0.0) if explained else mean
    more = f", {value:.2g} more than at the prompt" if explained else ""
    over = sum(bool(kl > 3 * limit.value) for kl in kl_of.values())
    outcome = Outcome(
        "kl decode",
        value,
        limit.value,
        "nats",
        f"mean KL in {len(later)} decoding steps of {len(kl_of)} prompts: {mean:.2g} nats{more} "
        f"(floor {limit.value:.1g})",
        prompts=over,
        of=len(kl_of),
        rungs=(RUNG,) if explained else tuple(range(RUNG + 1)),
    )
    curve = _curve([*first, *later], limit.value)
    if mean <= limit.value:
        words = f"decoding equal within noise: {len(later)} steps (mean KL {mean:.1e} nats)"
        return Looked(equal=(words,), outcome=(outcome,), curves=curve)
    finding = _only_in_decoding(first, later, limit.value, explained)
    return Looked(finding, outcome=(outcome,), curves=curve)


def _steps_across(
    rows: Sequence[tuple[Said, Said]], same_text: bool
) -> Iterator[tuple[int, int, float]]:
    """Prompt, step and KL of steps of both sides, while the text so far is the same if asked."""
    for number, (a, b) in enumerate(rows, start=1):
        if same_text and a.key != b.key:
            continue
        both = zip(steps_of(a.side, a.of, a.number), steps_of(b.side, b.of, b.number), strict=False)
        for x, y in both:
            if same_text and x.text[len(a.prompt) :] != y.text[len(b.prompt) :]:
                break
            if x.logits is None or y.logits is None or x.logits.shape != y.logits.shape:
                continue
            kl = float(divergence(x.logits[None], y.logits[None]).kl[0])
            if not np.isnan(kl):
                yield number, x.number, kl


def _only_in_decoding(
    first: list[tuple[int, int, float]],
    later: list[tuple[int, int, float]],
    floor: float,
    explained: bool,
) -> tuple[Finding, ...]:
    """The prompt is read alike, and steps after it are not."""
    over = [each for each in later if each[2] > 3 * floor]
    if not over:
        return ()
    prompt, step, kl = min(over, key=lambda each: (each[1], each[0]))
    alike = bool(first) and max(each[2] for each in first) <= floor
    words = f"decoding differs from prompt {prompt}, token {step} on ({len(over)} steps)"
    if alike:
        words += ", although the prompt gives the same distribution: what the cache or positions do"
    return (
        Finding(
            RUNG,
            "factor" if alike and not explained else "effect",
            "cache" if alike else "unknown",
            f"prompt {prompt}, token {step}",
            words,
            step=step,
            value=kl,
            floor=floor,
            unit="nats",
            swap=Swap("context") if alike and not explained else None,
        ),
    )


def _by_prompt(later: list[tuple[int, int, float]]) -> dict[int, float]:
    kls: dict[int, list[float]] = defaultdict(list)
    for prompt, _, kl in later:
        kls[prompt].append(kl)
    return {prompt: float(np.mean(each)) for prompt, each in kls.items()}


def _curve(found: list[tuple[int, int, float]], floor: float) -> dict[str, Any]:
    kls: dict[int, list[float]] = defaultdict(list)
    for _, step, kl in found:
        kls[step].append(kl)
    steps = sorted(kls)
    means = [float(np.mean(kls[step])) for step in steps]
    return {"decode": {"step": steps, "kl": means, "floor": floor}}
