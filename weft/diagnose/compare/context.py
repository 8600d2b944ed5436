"""Whether every decoding step of one side sees the whole text so far, at the right positions.

Lost context is named by what a step was given (one token and no cache), and where the same token
was read alone elsewhere, by its distribution being that one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from weft.diagnose.compare.divergence import divergence
from weft.diagnose.labels import Label
from weft.diagnose.sides.decoded import Step, lone_tokens, steps_of
from weft.diagnose.sides.evidence import Evidence
from weft.diagnose.words import counted

Fault = Literal["lost", "cut", "more", "position", "start", "padded"]
"""No context; less than all of it; more than there is; positions that do not count on; positions
that count on from where the prompt's should have ended, and did not; those that count padding."""


LABELS: Mapping[Fault, Label] = {
    "lost": "cache", "cut": "cache", "more": "cache", "position": "cache-pos", "start": "positions",
    "padded": "positions",
}  # fmt: skip

FIXES: Mapping[Fault, str] = {
    "lost": "pass the cache of the step before (past_key_values), or the whole text each time",
    "cut": "keep the cache that each call returns, and pass it to the next",
    "more": "start every prompt with an empty cache, and feed only what is not in it",
    "position": "let positions count on: the number of real tokens before",
    "start": "give the prompt the positions that its mask counts",
    "padded": "count real tokens only: position_ids = attention_mask.cumsum(-1) - 1",
}


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


def check(side: Evidence) -> tuple[Alone, ...]:
    """What is wrong with one side's decoding by itself, one of each kind."""
    found: dict[Fault, list[tuple[Step, int]]] = defaultdict(list)
    for steps in all_steps(side):
        kinds = [(fault, step, size) for step in steps for fault, size in _context(steps[0], step)]
        if not kinds:  # without its context, a step starts counting anew
            kinds = [each for step in steps for each in _position(steps[0], step)]
        for fault, step, size in kinds:
            found[fault].append((step, size))
    if found["position"] and _is_padding(side, found["position"]):
        found["padded"] = found.pop("position")
    return _together(
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
        if each
    )


def _is_padding(side: Evidence, off: Sequence[tuple[Step, int]]) -> bool:
    """Whether each row is off by what it is shorter than the longest one beside it."""
    rows = [(id(each), row) for each in side.generations for row in range(len(each.prompts))]
    lengths = [len(prompt) for each in side.generations for prompt in each.prompts]
    found = [0] * len(rows)
    for step, size in off:
        found[rows.index((id(step.generation), step.row))] = size
    for size in range(2, len(rows) + 1):  # prompts of a batch follow one another
        batches = [lengths[at : at + size] for at in range(0, len(rows), size)]
        if found == [max(batch) - length for batch in batches for length in batch]:
            return True
    return False


def _together(found: Iterable[Alone]) -> tuple[Alone, ...]:
    """Context that is lost at one step and cut at the next has one cause."""
    order = sorted(found, key=lambda each: each.step)
    context = [each for each in order if each.fault in ("lost", "cut")]
    if len(context) < 2:
        return tuple(order)
    first, second = context
    both = replace(
        first,
        steps=first.steps + second.steps,
        rows=max(first.rows, second.rows),
        words=f"{first.words}; then {second.words}",
    )
    return tuple(both if each is first else each for each in order if each is not second)


def all_steps(side: Evidence) -> list[tuple[Step, ...]]:
    """The steps of every completion."""
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


def _position(first: Step, step: Step) -> list[tuple[Fault, Step, int]]:
    """By how much a step's position is off, counted on from the prompt's last one."""
    if step.number == 1 or first.position is None or step.position is None:
        return []
    off = step.position - (first.position + step.number - 1)
    if not off:
        return []
    right = step.position == len(step.text) - 1
    return [("start" if right else "position", step, off)]


def _words(fault: Fault, each: Sequence[tuple[Step, int]], side: Evidence) -> str:
    step, size = each[0]
    count = f"{counted(len(each), 'decoding step')}, from step {min(s.number for s, _ in each)} on"
    if fault == "lost":
        same = _as_if_alone(side)
        return (
            f"context is lost: {count}, were given one token and no cache, where the text so far "
            f"has {counted(len(step.text), 'token')} and more{same}"
        )
    if fault == "cut":
        return (
            f"context is cut: {count}, saw {counted(step.reached, 'position')} where the text so "
            f"far has {len(step.text)} (the cache does not grow, or is cut)"
        )
    if fault == "more":
        return (
            f"{count}, saw {counted(size, 'position')} more than the text so far has (the cache "
            "holds other text, or the same text twice)"
        )
    if fault == "start":
        return (
            f"{count}, are at the right positions, and their prompts were not: those were off by "
            f"{min(-off for _, off in each):+d} to {max(-off for _, off in each):+d}"
        )
    sizes = Counter(off for _, off in each)
    if fault == "padded":
        return (
            f"positions count padding in {count}: off by {min(sizes):+d} to {max(sizes):+d}, in "
            "each row by what it is shorter than the longest beside it"
        )
    if len(sizes) == 1:
        return f"positions are off by {size:+d} in {count}"
    return (
        f"positions do not count on from the prompt in {count}: off by {min(sizes):+d} to "
        f"{max(sizes):+d}"
    )


def _as_if_alone(side: Evidence) -> str:
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
