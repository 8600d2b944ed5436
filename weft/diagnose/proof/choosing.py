"""How tokens are chosen and completions end: sampler, stop rule, seed.

Shapes: S positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.measures import Measure, chosen_from, ending, mean_js, predicted
from weft.diagnose.proof.replica import Replica, Row, Sampler, Stop

Spell = Callable[[Sequence[int]], str]

JS = 1e-6
"""Nats of Jensen-Shannon divergence below which two samplers are one."""


@dataclass(frozen=True)
class Exchange:
    """What an exchange did to a gap, in a unit of its own."""

    gap: float
    closes: float  # the gap of B with A's factor
    opens: float  # the gap of A with B's factor
    floor: float
    unit: str


def choose(engine: Engine, a: Replica, mended: Replica) -> Exchange | None:
    """What tokens are drawn from, along A's completions, when samplers are exchanged.

    `mended` is B with the causes before it exchanged already. None where a sampler is unknown.
    """
    if a.sampler is None or mended.sampler is None or not any(row.tokens for row in a.rows):
        return None
    measure = Measure.of(a, mended)
    mine, its = (predicted(engine, each, measure) for each in (a, mended))

    def drawn(log: Sequence[torch.Tensor], sampler: Sampler) -> list[torch.Tensor]:
        return [
            chosen_from(
                log_SV[-len(row.tokens[: len(log_SV)]) - 1 :], sampler, _before(row, log_SV)
            )
            for log_SV, row in zip(log, a.rows, strict=True)
        ]

    own = drawn(mine, a.sampler)
    gap, closes, opens = (
        mean_js(own, drawn(log, sampler))
        for log, sampler in ((its, mended.sampler), (its, a.sampler), (mine, mended.sampler))
    )
    return Exchange(gap, closes, opens, JS, "nats (Jensen-Shannon) of what tokens are drawn from")


def _before(row: Row, log_SV: torch.Tensor) -> list[tuple[int, ...]]:
    said = min(len(row.tokens), len(log_SV) - 1)
    return [row.prompt + row.tokens[:n] for n in range(said + 1)]


def ends(a: Replica, b: Replica, spell: Spell | None) -> tuple[Exchange, int] | None:
    """Which share of completions ends elsewhere under the other's rule, and of how many.

    Only completions count that their own side's rule ends where they ended. None where a rule is
    unknown, or does not explain most of its own side.
    """
    if a.stop is None or b.stop is None:
        return None
    rows = [row for replica in (a, b) for row in replica.rows if row.tokens]
    told = [
        row
        for replica, rule in ((a, a.stop), (b, b.stop))
        for row in replica.rows
        if row.tokens and _explains(rule, row, spell)
    ]
    if not told or 2 * len(told) < len(rows):
        return None
    both = [(ending(a.stop, row.tokens, spell), ending(b.stop, row.tokens, spell)) for row in told]
    apart = sum(x != y for x, y in both) / len(both)
    return Exchange(apart, 0.0, apart, 0.0, "of completions end elsewhere"), len(told)


def _explains(rule: Stop, row: Row, spell: Spell | None) -> bool:
    """Whether a rule ends a completion where it ended; its last token may not be among them."""
    found = ending(rule, row.tokens, spell)
    if row.ended in ("eos", "stop"):
        return found is None or found == len(row.tokens)
    return row.ended == "length" and found == len(row.tokens)
