"""What a side may have computed, where its recording does not explain what it did.

Each guess mends a replica in one way. The one after which it reproduces the recording says what
was done; ordinary exchanges then prove it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from scipy.optimize import minimize_scalar

from weft.diagnose.labels import Label
from weft.diagnose.proof.replica import Context, Moment, Replica, Row, Update
from weft.diagnose.proof.solve import SPECIFIC
from weft.diagnose.proof.swaps import SWAPS

MATCH = 0.95
"""Share of the gap between replica and recording that a guess must explain."""

NAMES: dict[str, Label] = {
    "scale": "scale", "init": "init", "normaliser": "normaliser", "labels": "labels",
    "mask": "mask", "positions": "positions", "schedule": "schedule", "order": "order",
    "trainable": "trainable", "optimiser": "optimiser", "context": "cache", "mode": "mode",
    "dtype": "precision", "prompt": "tokens", "ids": "tokens", "attach": "attach",
    "adapter": "checkpoint", "base": "base", "tied": "tied",
}  # fmt: skip
"""The cause that a factor is, where nothing more is known of it."""


@dataclass(frozen=True)
class Guess:
    """One thing that may have been done."""

    label: Label
    factor: str
    words: str  # what the side then does: "computes with ..."
    mended: Replica


def guesses(replica: Replica, other: Replica) -> Iterator[Guess]:
    """Ways in which a replica may have to be mended, the plainest first."""
    yield from _scales(replica)
    yield from _contexts(replica)
    yield from _inputs(replica)
    yield from _heads(replica)
    for factor in SPECIFIC:
        if factor == "init" or (
            factor == "attach" and replica.adapter.keys() == other.adapter.keys()
        ):
            continue  # of what is read, these are another adapter
        made = SWAPS[factor](replica, other, (), None)
        if made is not replica and _reads(made) != _reads(replica):
            yield Guess(NAMES[factor], factor, f"computes with {other.name}'s {factor}", made)


def _reads(replica: Replica) -> tuple[int, ...]:
    """What a reading depends on, by identity."""
    weights = [part for each in replica.moments for part in (each.base, each.adapter)]
    parts = (*weights, replica.rows, replica.context, replica.dropping)
    return tuple(map(id, parts))


def explain(
    replica: Replica,
    other: Replica,
    apart: Callable[[Replica], float],
    enough: float,
    told: Callable[[str], None] = lambda words: None,
) -> Guess | None:
    """The guess after which a replica is what was recorded; `apart` measures that, in nats."""
    before = apart(replica)
    best: tuple[float, Guess] | None = None
    for guess in guesses(replica, other):
        told(f"trying whether {replica.name} {guess.words}")
        after = apart(guess.mended)
        if best is None or after < best[0]:
            best = after, guess
        if after <= enough:
            return guess
    if _acting(replica):
        fitted = _fitted(replica, apart)
        if best is None or apart(fitted.mended) < best[0]:
            best = apart(fitted.mended), fitted
    if best is None or best[0] > (1 - MATCH) * before:
        return None
    return best[1]


def _fitted(replica: Replica, apart: Callable[[Replica], float]) -> Guess:
    found = minimize_scalar(
        lambda log_c: apart(rescaled(replica, math.exp(log_c))),
        bounds=(math.log(0.02), math.log(50)),
        method="bounded",
        options={"maxiter": 14},
    )
    c = math.exp(float(found.x))
    return Guess("scale", "scale", f"multiplies the update by {c:.3g}", rescaled(replica, c))


def rescaled(replica: Replica, c: float) -> Replica:
    """With every update `c` times as large."""

    def scaled(number: int, moment: Moment) -> Moment:
        its = {name: replace(each, scale=each.scale * c) for name, each in moment.adapter.items()}
        return replace(moment, adapter=its)

    return replica.at_each(scaled)


def _acting(replica: Replica) -> list[Update]:
    return [u for moment in replica.moments for u in moment.adapter.values() if u.scale]


def _scales(replica: Replica) -> Iterator[Guess]:
    acting = _acting(replica)
    if not acting:
        return
    yield Guess("attach", "scale", "computes without its adapter", rescaled(replica, 0.0))
    twice = rescaled(replica, 2.0)
    yield Guess("double-apply", "scale", "adds its adapter twice", twice)
    r, s = acting[0].rank, acting[0].scale
    for c, words in (
        (r, "does not divide by the rank"),
        (1 / r, "divides by the rank twice"),
        (math.sqrt(r), "divides by the root of the rank"),
        (1 / math.sqrt(r), "divides by the root of the rank once more"),
        (20 / s, "multiplies by 20 whatever its alpha"),
        (1 / s, "does not scale its adapter"),
    ):
        if not math.isclose(c, 1.0) and c > 0:
            yield Guess("scale", "scale", words, rescaled(replica, c))


def _contexts(replica: Replica) -> Iterator[Guess]:
    if not any(row.tokens for row in replica.rows):
        return
    mine = replica.context
    last = Context(visible=(1,), origin="fresh", masked=mine.masked)
    yield Guess("cache", "context", "decodes from the last token alone", _fed(replica, last))
    grown = Context(visible=(1, 2), origin="fresh", masked=mine.masked)
    yield Guess("cache", "context", "loses the prompt's cache", _fed(replica, grown))
    for by in (1, -1):
        shift = tuple(each + by for each in mine.shift) or (by,)
        words = f"decodes at positions that are off by {by}"
        yield Guess("cache-pos", "context", words, _fed(replica, replace(mine, shift=shift)))


def _fed(replica: Replica, context: Context) -> Replica:
    return replica.with_(context=context)


def _heads(replica: Replica) -> Iterator[Guess]:
    for tied, words in ((True, "reads its head off its embedding"), (False, "has its own head")):

        def made(number: int, mine: Moment, tied: bool = tied) -> Moment:
            if mine.base.tied in (None, tied):
                return mine
            return replace(mine, base=replace(mine.base, tied=tied, digests={}))

        mended = replica.at_each(made)
        if mended is not replica:
            yield Guess("tied", "tied", words, mended)


def _inputs(replica: Replica) -> Iterator[Guess]:
    rows = replica.rows
    if any(row.left for row in rows):
        attended = tuple(replace(row, attended=not row.attended) for row in rows)
        words = "attends to padding" if not rows[0].attended else "does not attend to padding"
        yield Guess("mask", "mask", words, replica.with_(rows=attended))
        other = tuple(_recounted(row) for row in rows)
        yield Guess(
            "positions", "positions", "counts positions otherwise", replica.with_(rows=other)
        )
    if all(len(row.prompt) > 1 for row in rows) and len({row.prompt[0] for row in rows}) == 1:
        cut = tuple(replace(row, prompt=row.prompt[1:], held=()) for row in rows)
        yield Guess("tokens", "ids", "leaves out the first token", replica.with_(rows=cut))
        double = tuple(replace(row, prompt=(row.prompt[0], *row.prompt), held=()) for row in rows)
        yield Guess("tokens", "ids", "reads the first token twice", replica.with_(rows=double))


def _recounted(row: Row) -> Row:
    return replace(row, rule="index" if row.rule == "counted" else "counted", held=())
