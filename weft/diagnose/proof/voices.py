"""Completions spoken again: draws replayed from a seed, and texts of tokens.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import kstest

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.data.tokenizer import load_tokenizer
from weft.diagnose.proof.choosing import Exchange
from weft.diagnose.proof.drawing import Drawer, Numbers, Start, candidates
from weft.diagnose.proof.fed import generation_rows
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.measures import Measure, chosen_from, predicted
from weft.diagnose.proof.replica import BaseValue, Replica, Row, Stop
from weft.diagnose.sides.evidence import Evidence, Pair

SPOKEN = 16
"""Tokens of each completion that are drawn again, at most; of the first generations in order, as
they share one stream of draws, until there are so many."""

FEWEST, UNLIKELY = 8, 0.01
"""Tokens that a test of a distribution needs, and the chance below which they are not of it."""


@dataclass(frozen=True, eq=False)
class Voices:
    """Both sides, drawing."""

    engine: Engine
    pair: Pair
    a: Replica
    b: Replica  # with all causes before it exchanged

    def seeds(self) -> Exchange | None:
        """Share of tokens that differ when the numbers that they are drawn with are exchanged.

        Only for a side whose own numbers, drawn in some way, give its own tokens again; None where
        those of neither do.
        """
        calls = self._calls()
        if not all(calls) or self.a.sampler is None or self.b.sampler is None:
            return None
        said = [[row.tokens[:SPOKEN] for call in each for row in call] for each in calls]
        gap = apart(*said)
        if not gap:
            return None
        sides = [side for _, side in self.pair.sides]
        replicas = self.a, self.b
        found = [self._numbers(*each) for each in zip(replicas, sides, calls, strict=True)]
        for mine, its in ((0, 1), (1, 0)):
            numbers = found[mine]
            if numbers is None:
                continue
            other = replicas[its].with_(sampler=replicas[mine].sampler)
            closed = self._spoken(other, calls[its], numbers)
            away = found[its] or numbers.moved(_elsewhere(numbers))
            opened = self._spoken(replicas[mine], calls[mine], away)
            closes, opens = (apart(said[mine], each) for each in (closed, opened))
            return Exchange(gap, closes, opens, 0.0, "of drawn tokens differ")
        return None

    def agree(self) -> str | None:
        """In words, that both sides' tokens can be draws from one distribution; None: they cannot.

        For sides whose replicas are alike by now. The rank of a drawn token in its distribution,
        at random within its own probability, is uniform; a Kolmogorov-Smirnov test of all ranks.
        """
        calls = self._calls()
        if not all(calls) or self.a.sampler is None or self.b.sampler is None:
            return None
        told = []
        for replica, each in zip(
            (self.a, self.b.with_(sampler=self.a.sampler)), calls, strict=True
        ):
            if replica.sampler is None or replica.sampler.greedy:
                return None
            ranks = self._ranks(replica, each)
            if len(ranks) < FEWEST or not all(0 <= rank <= 1 for rank in ranks):
                return None
            chance = float(kstest(ranks, "uniform").pvalue)
            if chance < UNLIKELY:
                return None
            told.append(f"{replica.name}: {len(ranks)} tokens, p = {chance:.2g}")
        return f"tokens of both sides are draws from one distribution ({'; '.join(told)})"

    def _calls(self) -> list[list[Sequence[Row]]]:
        return [_first(generation_rows(side)) for _, side in self.pair.sides]

    def _numbers(
        self, replica: Replica, side: Evidence, calls: Sequence[Sequence[Row]]
    ) -> Numbers | None:
        """The way of drawing that gives a side's own tokens, all of them."""
        heard = self._along(replica, calls)
        if not all(p_BV.isfinite().all() for steps in heard for p_BV in steps):
            return None
        return next((each for each in candidates(side) if _gives(each, heard, calls)), None)

    def _along(self, replica: Replica, calls: Sequence[Sequence[Row]]) -> list[list[torch.Tensor]]:
        """p_BV of each step of each call along its own tokens; of rows that are over, any."""
        assert replica.sampler is not None
        found = []
        for number, rows in enumerate(calls):
            longest = _longest(rows, last=number == len(calls) - 1)
            tokens = tuple(row.tokens[: max(0, longest - 1)] for row in rows)
            measure = Measure((1,) * len(rows), tokens)
            log = predicted(self.engine, replica.with_(rows=tuple(rows)), measure)
            steps = []
            for n in range(longest):
                log_BV = torch.stack([each[min(n, len(each) - 1)] for each in log])
                before = [row.prompt + row.tokens[:n] for row in rows]
                steps.append(chosen_from(log_BV, replica.sampler, before))
            found.append(steps)
        return found

    def _ranks(self, replica: Replica, calls: Sequence[Sequence[Row]]) -> list[float]:
        """Where each drawn token lies in its distribution; above 1 where it could not be drawn."""
        drawn = Key.of(0).fold("ranks", replica.name).numpy()
        found = []
        for steps, rows in zip(self._along(replica, calls), calls, strict=True):
            for n, p_BV in enumerate(steps):
                for p_V, row in zip(p_BV, rows, strict=True):
                    if n < len(row.tokens):
                        own = float(p_V[row.tokens[n]])
                        below = float(p_V[: row.tokens[n]].sum())
                        found.append(min(1.0, below + own * drawn.random()) if own > 0 else 2.0)
        return found

    def _spoken(
        self, replica: Replica, calls: Sequence[Sequence[Row]], numbers: Numbers
    ) -> list[tuple[int, ...]]:
        """What the rows of each call say when they are drawn with these numbers."""
        draw = numbers.begin()
        found: list[tuple[int, ...]] = []
        for call in calls:
            found += self._call(replica, call, draw, last=call is calls[-1])
        return found

    def _call(
        self, replica: Replica, rows: Sequence[Row], draw: Drawer, *, last: bool
    ) -> list[tuple[int, ...]]:
        """One token a row at a time, of all rows that a call has."""
        sampler = replica.sampler
        assert sampler is not None
        prompts = [row.prompt for row in rows]
        said: list[tuple[int, ...]] = [() for _ in rows]
        for step in range(_longest(rows, last=last)):
            measure = Measure((1,) * len(rows), tuple(said))
            log = predicted(self.engine, replica.with_(rows=tuple(rows)), measure)
            log_BV = torch.stack([each[-1] for each in log])
            before = [row.prompt + own for row, own in zip(rows, said, strict=True)]
            p_BV = chosen_from(log_BV, sampler, before)
            drawn = p_BV.argmax(-1) if sampler.greedy else draw(p_BV, prompts, step)
            said = [(*own, int(token)) for own, token in zip(said, drawn, strict=True)]
        return [own[: min(len(row.tokens), SPOKEN)] for own, row in zip(said, rows, strict=True)]


def _gives(
    numbers: Numbers, heard: Sequence[Sequence[torch.Tensor]], calls: Sequence[Sequence[Row]]
) -> bool:
    """Whether numbers give the tokens that were drawn, each from what it was drawn from."""
    draw = numbers.begin()
    for steps, rows in zip(heard, calls, strict=True):
        prompts = [row.prompt for row in rows]
        for n, p_BV in enumerate(steps):
            drawn = draw(p_BV, prompts, n).tolist()
            if any(
                n < len(row.tokens) and row.tokens[n] != t
                for row, t in zip(rows, drawn, strict=True)
            ):
                return False
    return True


def _elsewhere(numbers: Numbers) -> Start:
    """Any other beginning, where nobody knows the other side's."""
    return numbers.start + 1 if isinstance(numbers.start, int) else 0


def _longest(rows: Sequence[Row], *, last: bool) -> int:
    """Steps of a call; of the last one no more than are looked at."""
    longest = max((len(row.tokens) for row in rows), default=0)
    return min(longest, SPOKEN) if last else longest


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
