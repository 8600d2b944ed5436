"""From what the rungs say to an answer: the same, different, or not sure; and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from weft.diagnose.finding import Cause, Diagnosis, Finding, Looked, Outcome, Verdict
from weft.diagnose.labels import Label
from weft.diagnose.ladder import Rung
from weft.diagnose.sides.evidence import Pair

CERTAIN: frozenset[Label] = frozenset({"sampler", "cache", "cache-pos"})
"""Changes what may come out, whether or not it did this time."""

FOLLOWS: Mapping[Label, frozenset[Label]] = {
    "init": frozenset({"rank"}),
    "tokens": frozenset({"template", "data", "tokenizer", "truncation"}),
    "checkpoint": frozenset({"rank", "key-map", "layout", "init"}),
    "order": frozenset({"seed"}),
    "precision": frozenset({"overflow"}),
}
"""What can be no more than the consequence of another difference, where both are found."""

SHARED = {
    "config": frozenset({1}),
    "adapter": frozenset({4, 5}),
    "run": frozenset({2, 3, 4, 5, 6, 7, 10, 11}),
    "recording": frozenset({2, 3, 4, 5, 6, 7, 10, 11}),
}
"""Rungs at which something equal, seen on both sides of a kind, makes them the same."""


ALONE = {"config": frozenset({1}), "adapter": frozenset({1, 4, 5})}
"""Rungs that can look at kinds of sides that hold one thing; what the others lack is said once."""


def judge(pair: Pair, looks: Mapping[Rung, Looked]) -> Diagnosis:
    """The verdict on two sides, its causes strongest first, and what was and was not checked."""
    found = [finding for look in looks.values() for finding in look.findings]
    outcome = tuple(each for look in looks.values() for each in look.outcome)
    factors = [each for each in found if each.nature == "factor"]
    effects = tuple(each for each in found if each.nature == "effect")
    acting = [each for each in factors if _acts(each, outcome)]
    idle = [each for each in factors if each not in acting]
    chosen = pair.a.kind == "config"  # where nothing follows from anything
    causes = _causes(acting, effects, outcome, {} if chosen else FOLLOWS)
    verdict = _verdict(acting, outcome, _known_equal(pair, looks))
    if verdict == "same":
        causes = ()
    idle_words = [f"{each.words} (without effect on what was compared)" for each in idle]
    early = _ended_early(looks)
    ours = [cause.finding for cause in causes]
    followed = [f.words for f in acting if f not in ours]
    return Diagnosis(
        pair.a.ref,
        pair.b.ref,
        verdict,
        _words(verdict, causes, outcome),
        causes,
        _first(ours, effects) if verdict != "same" else None,
        outcome,
        effects,
        harmless=(
            *(each.words for each in found if each.nature == "harmless"),
            *(idle_words if not early else ()),
        ),
        ruled_out=tuple(words for look in looks.values() for words in look.equal),
        not_checked=_once(
            [
                *(f"{words}: one side ended before it could have" for words in idle_words if early),
                *_unseen(pair, looks),
                *(words for _, side in pair.sides for words in side.lacks),
                *(f"{name}: {words}" for name, side in pair.sides for words in side.notices),
            ]
        ),
        coverage={**_coverage(pair), "consequences": followed},
        curves={name: curve for look in looks.values() for name, curve in look.curves.items()},
    )


def _unseen(pair: Pair, looks: Mapping[Rung, Looked]) -> Iterator[str]:
    """What rungs could not look at, though sides of these kinds may have it."""
    for rung, look in looks.items():
        if all(rung.number in ALONE.get(side.kind, (rung.number,)) for _, side in pair.sides):
            yield from look.unseen


def _acts(factor: Finding, outcome: Sequence[Outcome]) -> bool:
    """Whether a difference has moved anything; one whose outcome nobody saw may have."""
    moved = [each for each in outcome if factor.rung in each.rungs]
    if not moved or factor.label in CERTAIN:
        return True
    return any(each.apart != "same" for each in moved)


def _known_equal(pair: Pair, looks: Mapping[Rung, Looked]) -> bool:
    """Whether both ended alike, and something was seen to be equal in both."""
    cut_short = any(
        each.nature != "harmless"
        for rung, look in looks.items()
        for each in look.findings
        if rung.number == 0
    )
    shared = SHARED[pair.a.kind] & SHARED[pair.b.kind]
    seen = any(look.outcome or (look.equal and r.number in shared) for r, look in looks.items())
    return bool(seen) and not cut_short


def _ended_early(looks: Mapping[Rung, Looked]) -> bool:
    """Whether one side failed or was cut off: what would have come of a difference is not known."""
    found = [each for look in looks.values() for each in look.findings]
    return any(each.place == "status" and each.nature == "effect" for each in found)


def _verdict(acting: Sequence[Finding], outcome: Sequence[Outcome], known: bool) -> Verdict:
    apart = {each.apart for each in outcome}
    if acting or "different" in apart:
        return "different"
    return "unsure" if "unsure" in apart or not known else "same"


def _causes(
    acting: Sequence[Finding],
    effects: Sequence[Finding],
    outcome: Sequence[Outcome],
    follows: Mapping[Label, frozenset[Label]],
) -> tuple[Cause, ...]:
    """Differences that are no consequence of others; else the place where results part."""
    labels = {each.label for each in acting}
    own = [each for each in acting if not follows.get(each.label, frozenset()) & labels]
    if own:
        ranked = sorted(own, key=lambda each: (-_strength(each, outcome), each.rung))
        return tuple(Cause(each, "located") for each in _once_a_step(ranked))
    first = _first((), effects)
    return () if first is None else (Cause(first, "unresolved"),)


def _once_a_step(ranked: Sequence[Finding]) -> Iterator[Finding]:
    """What one cause does at one step of training is one cause: a merge, and the reset with it."""
    told = set()
    for each in ranked:
        key = each.label, each.step
        if each.step is None or key not in told:
            yield each
        told.add(key)


def _strength(factor: Finding, outcome: Sequence[Outcome]) -> float:
    """The largest divergence, in nats, of what only this rung and later ones can have moved."""
    own = [each.value for each in outcome if each.unit == "nats" and factor.rung in each.rungs]
    return max(own, default=0.0)


def _first(factors: Sequence[Finding], effects: Sequence[Finding]) -> Finding | None:
    """Where A and B part: of what was given, else of what was computed."""
    ranked = sorted([*factors] or [*effects], key=lambda each: (each.rung, each.step or 0))
    return ranked[0] if ranked else None


def _words(verdict: Verdict, causes: Sequence[Cause], outcome: Sequence[Outcome]) -> str:
    if verdict == "same":
        floors = [each for each in outcome if each.floor]
        within = " within noise" if any(each.value > 0 for each in floors) else ""
        return f"A and B are the same{within}"
    if not causes:
        if verdict == "different":
            return "A and B differ, and nothing that was seen says why"
        return "A and B may be the same or not: what was compared does not decide it"
    more = f", and {len(causes) - 1} more" if len(causes) > 1 else ""
    return f"{causes[0].finding.words}{more}"


def _coverage(pair: Pair) -> dict[str, Any]:
    return {
        name: {
            "kind": side.kind,
            "prompts": len(side.encoded),
            "passes": len(side.passes),
            "generations": len(side.generations),
            "steps": len(side.steps),
            "checks": [check.name for check in side.checks],
        }
        for name, side in pair.sides
    }


def _once(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))
