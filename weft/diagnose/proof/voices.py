"""Completions spoken again: draws replayed from a seed, and texts of tokens.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from weft.core.errors import InputError
from weft.data.tokenizer import load_tokenizer
from weft.diagnose.proof.choosing import Exchange
from weft.diagnose.proof.fed import generation_rows
from weft.diagnose.proof.feeding import readings
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.measures import chosen_from
from weft.diagnose.proof.replica import BaseValue, Replica, Row, Stop
from weft.diagnose.sides.evidence import Pair
from weft.model.noise import seeded

SPOKEN = 16
"""Tokens of each completion that are drawn again, at most; of the first generations in order, as
they share one stream of draws, until there are so many."""


@dataclass(frozen=True, eq=False)
class Voices:
    """Both sides, drawing."""

    engine: Engine
    pair: Pair
    a: Replica
    b: Replica  # with all causes before it exchanged

    def seeds(self) -> Exchange | None:
        """Share of tokens that differ when seeds are exchanged.

        Only for a side whose own seed gives its own tokens again; None where that of A, or of B
        where A has none, does not.
        """
        calls = [_first(generation_rows(side)) for _, side in self.pair.sides]
        if not all(calls) or self.a.sampler is None or self.b.sampler is None:
            return None
        said = [[row.tokens[:SPOKEN] for call in each for row in call] for each in calls]
        gap = apart(*said)
        if not gap:
            return None
        for replica, other, own, mine in (
            (self.a, self.b, calls[0], said[0]),
            (self.b, self.a, calls[1], said[1]),
        ):
            if replica.seed is None or apart(mine, self._spoken(replica, own, replica.seed)) > 0:
                continue
            theirs = calls[1] if replica is self.a else calls[0]
            closed = self._spoken(other.with_(sampler=replica.sampler), theirs, replica.seed)
            away = other.seed if other.seed is not None else replica.seed + 1
            opened = self._spoken(replica, own, away)
            if other.seed is None and apart(mine, opened) == 0:
                return None
            return Exchange(
                gap, apart(mine, closed), apart(mine, opened), 0.0, "of drawn tokens differ"
            )
        return None

    def _spoken(
        self, replica: Replica, calls: Sequence[Sequence[Row]], seed: int
    ) -> list[tuple[int, ...]]:
        """What the rows of each call say when draws begin at a seed."""
        assert replica.sampler is not None
        found: list[tuple[int, ...]] = []
        with seeded(seed):
            for call in calls:
                found += self._call(replica, call, last=call is calls[-1])
        return found

    def _call(self, replica: Replica, rows: Sequence[Row], *, last: bool) -> list[tuple[int, ...]]:
        """One token a row at a time, of all rows that a call has."""
        sampler = replica.sampler
        assert sampler is not None
        longest = max((len(row.tokens) for row in rows), default=0)
        longest = min(longest, SPOKEN) if last else longest
        said: list[tuple[int, ...]] = [() for _ in rows]
        for _ in range(longest):
            read = [
                readings(row, replica.context, own)[-1] for row, own in zip(rows, said, strict=True)
            ]
            logits = self.engine.logits(replica.base, replica.adapter, read)
            log_BV = torch.stack([each[-1] for each in logits]).double().log_softmax(-1)
            before = [row.prompt + own for row, own in zip(rows, said, strict=True)]
            p_BV = chosen_from(log_BV, sampler, before).float()
            drawn = p_BV.argmax(-1) if sampler.greedy else torch.multinomial(p_BV, 1)[:, 0]
            said = [(*own, int(token)) for own, token in zip(said, drawn, strict=True)]
        return [own[: min(len(row.tokens), SPOKEN)] for own, row in zip(said, rows, strict=True)]


def _first(calls: Sequence[Sequence[Row]]) -> list[Sequence[Row]]:
    found: list[Sequence[Row]] = []
    for call in calls:
        if sum(len(row.tokens) for each in found for row in each) >= SPOKEN:
            break
        found.append(call)
    return found


def apart(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> float:
    """Share of positions at which completions differ; a missing token differs."""
    pairs = list(zip(a, b, strict=False))
    size = sum(max(len(x), len(y)) for x, y in pairs)
    differ = sum(
        sum(p != q for p, q in zip(x, y, strict=False)) + abs(len(x) - len(y)) for x, y in pairs
    )
    return differ / size if size else 0.0


def spell_of(base: BaseValue, *rules: Stop | None) -> Callable[[Sequence[int]], str] | None:
    """What tokens spell, if a rule asks for text and the base has a tokenizer."""
    if base.load is None or not any(rule is not None and rule.strings for rule in rules):
        return None
    try:
        tokenizer = load_tokenizer(base.load)
    except InputError:
        return None

    def spell(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))

    return spell
