"""How far apart two replicas are: in what they predict, what they choose from, and where they end.

Shapes: S positions, V vocabulary, R ranks, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from weft.core.keys import Key
from weft.diagnose.proof.feeding import Reading, padded, readings
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.replica import DECODED, Replica, Row, Sampler, Stop

UNDEFINED = 50.0
"""Nats at a position where only one of two distributions is finite."""


@dataclass(frozen=True)
class Measure:
    """At which positions replicas are compared: along A's completions, whoever reads them."""

    tails: tuple[int, ...]  # by row, how many of the prompt's last positions
    tokens: tuple[tuple[int, ...], ...]  # by row, of A's completion

    @classmethod
    def of(cls, a: Replica, b: Replica) -> Measure:
        """The ends of prompts, what completions begin with, and the last tokens in common."""
        tokens = tuple(row.tokens[:DECODED] for row in a.rows)
        pairs = zip(a.rows, b.rows, tokens, strict=True)
        return cls(tuple(1 if said else _common_end(x, y) for x, y, said in pairs), tokens)

    @property
    def positions(self) -> int:
        """How many there are."""
        return sum(self.tails) + sum(map(len, self.tokens))


def _common_end(a: Row, b: Row) -> int:
    pairs = zip(reversed(a.prompt), reversed(b.prompt), strict=False)
    same = next((n for n, (x, y) in enumerate(pairs) if x != y), min(len(a.prompt), len(b.prompt)))
    return max(1, min(same, DECODED))


def predicted(
    engine: Engine,
    replica: Replica,
    measure: Measure,
    *,
    nudge: Key | None = None,
    most: int | None = None,
    pad: tuple[int, int] = (0, 0),
) -> list[torch.Tensor]:
    """Log-probabilities [S, V] in float64 of each row, at the positions of a measure.

    Nulls: `nudge` moves embeddings by one unit in the last place, at most `most` readings share a
    forward, and `pad` columns that nothing attends to stand before and after each.
    """
    dropping = Key.of(0).fold("dropout", replica.name) if replica.dropping else None
    found: dict[int, torch.Tensor] = {}
    for number, moment in enumerate(replica.moments):
        read: list[Reading] = []
        owner = []
        for n, row in enumerate(replica.rows):
            if row.moment == number:
                its = readings(row, replica.context, measure.tokens[n], measure.tails[n])
                its = tuple(padded(each, *pad) for each in its) if any(pad) else its
                read += its
                owner += [n] * len(its)
        logits = engine.logits(
            moment.base, moment.adapter, read, nudge=nudge, most=most, dropping=dropping
        )
        for n in dict.fromkeys(owner):
            mine = [each for each, own in zip(logits, owner, strict=True) if own == n]
            found[n] = torch.cat(mine).double().log_softmax(-1)
    return [found[n] for n in range(len(replica.rows))]


def mean_kl(log_a: Sequence[torch.Tensor], log_x: Sequence[torch.Tensor]) -> float:
    """Mean over all positions of KL(A || X) in nats."""
    per = torch.cat([kl_S(a, x) for a, x in zip(log_a, log_x, strict=True)])
    return float(per.mean()) if len(per) else 0.0


def kl_S(log_a_SV: torch.Tensor, log_x_SV: torch.Tensor) -> torch.Tensor:
    """KL(A || X) in nats at each position; see `UNDEFINED` for what is not finite."""
    fine_a, fine_x = log_a_SV.isfinite().all(-1), log_x_SV.isfinite().all(-1)
    kl = (log_a_SV.exp() * (log_a_SV - log_x_SV)).sum(-1).clamp(min=0.0)
    kl = torch.where(fine_a & fine_x, kl, torch.full_like(kl, UNDEFINED))
    return torch.where(~fine_a & ~fine_x, torch.zeros_like(kl), kl)


def chosen_from(
    log_SV: torch.Tensor, sampler: Sampler, before: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Probabilities [S, V] that a token is drawn with, in the order of transformers' filters.

    `before` has the tokens that a repetition penalty looks at, by position.
    """
    if sampler.penalty != 1.0:
        log_SV = log_SV.clone()
        for s, seen in enumerate(before):
            at = torch.tensor(sorted(set(seen)))
            its = log_SV[s, at]
            log_SV[s, at] = torch.where(its < 0, its * sampler.penalty, its / sampler.penalty)
    if sampler.greedy or sampler.temperature == 0:
        return torch.nn.functional.one_hot(log_SV.argmax(-1), log_SV.shape[-1]).double()
    log_SV = log_SV / sampler.temperature
    if sampler.top_k and sampler.top_k < log_SV.shape[-1]:
        least = log_SV.topk(sampler.top_k).values[:, -1:]
        log_SV = log_SV.masked_fill(log_SV < least, -torch.inf)
    if sampler.top_p is not None and sampler.top_p < 1:
        ranked, order = log_SV.softmax(-1).sort(-1, descending=True)
        late = ranked.cumsum(-1) - ranked >= sampler.top_p
        log_SV = log_SV.masked_fill(late.scatter(-1, order, late), -torch.inf)
    if sampler.min_p:
        p = log_SV.softmax(-1)
        log_SV = log_SV.masked_fill(p < sampler.min_p * p.amax(-1, keepdim=True), -torch.inf)
    return log_SV.softmax(-1)


def mean_js(p: Sequence[torch.Tensor], q: Sequence[torch.Tensor]) -> float:
    """Mean over all positions of the Jensen-Shannon divergence in nats, at most log 2."""
    per = []
    for p_SV, q_SV in zip(p, q, strict=True):
        m_SV = (p_SV + q_SV) / 2
        parts = [torch.special.xlogy(x, x) - torch.special.xlogy(x, m_SV) for x in (p_SV, q_SV)]
        per.append(((parts[0] + parts[1]) / 2).sum(-1).nan_to_num(float(np.log(2))))
    return float(torch.cat(per).clamp(min=0).mean()) if per else 0.0


def ending(
    stop: Stop, tokens: Sequence[int], spell: Callable[[Sequence[int]], str] | None
) -> int | None:
    """After how many tokens a rule ends a completion; None if `tokens` do not get that far."""
    for n, token in enumerate(tokens, start=1):
        if token in stop.eos:
            return n
        if stop.max_tokens is not None and n >= stop.max_tokens:
            return n
        if stop.strings and spell is not None:
            text = spell(tokens[:n])
            if any(each in text for each in stop.strings):
                return n
    return None
