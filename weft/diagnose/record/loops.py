"""Decoding loops that a script has written itself, recognised by what it feeds the model.

A loop is a run of passes of one model in which each pass is fed the token that was chosen after the
pass before it. There are four ways to feed it: the whole text again, its last part (a window), the
token alone beside a cache, or the token alone without one, which loses the context.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.diagnose.record.draws import Chosen, Fitted, draw_of, filters
from weft.diagnose.record.endings import Rule
from weft.diagnose.record.patching import Undo
from weft.diagnose.record.recorder import Ending, PassSeen, Recorder
from weft.diagnose.record.seeds import random_digest, random_state
from weft.runs.evidence import Draw, Generation

if TYPE_CHECKING:
    import torch

FITTED_STEPS, FITTED_ROWS = 64, 8
"""Draws to which a temperature is fitted."""

WAYS = 4
"""Changes in how a model is fed that are told."""

MOST = 64
"""Choices after one pass that are remembered."""

TOGETHER = 64
"""Loops of one place that are written together."""


@dataclass(eq=False)
class Loop:
    """A prefill, and what has followed it."""

    model: str
    where: str | None
    eos: frozenset[int]
    random: str | None
    contexts: list[list[int]]  # all that was fed so far, B rows without padding
    passes: list[int]
    logits: torch.Tensor | None = None  # [B, V] of the last pass
    chosen: list[Chosen] = field(default_factory=list)  # since the last pass
    tokens: list[list[int]] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    fitted: list[Fitted] = field(default_factory=list)
    ways: list[str] = field(default_factory=list)  # in which it was fed, one after another
    greedy: bool = True  # every token was the likeliest
    size: int = 0  # V
    state: np.ndarray | None = None  # of the generator

    def __post_init__(self) -> None:
        """Begin with no tokens."""
        self.prompts = [tuple(row) for row in self.contexts]
        self.tokens = [[] for _ in self.contexts]

    @property
    def steps(self) -> int:
        """Tokens that were chosen and fed."""
        return len(self.tokens[0])

    def is_over(self, row: int) -> bool:
        """Whether a row of a batch has ended; what it is fed then is only filling."""
        return len(self.tokens) > 1 and any(token in self.eos for token in self.tokens[row])

    def follow(self, rows: Sequence[Sequence[int]], past: int) -> str | None:
        """How a pass goes on with this loop, given its unpadded rows; None: it does not."""
        if len(rows) != len(self.contexts) or not all(rows):
            return None
        live = [row for row in range(len(rows)) if not self.is_over(row)]
        one = all(len(rows[row]) == 1 for row in live)
        if past and not one:
            return "more prompt" if not self.steps and not self.chosen else None
        picked = self.picked([row[-1] for row in rows])
        if picked is None and self.chosen:  # what was chosen is not what is fed
            return None
        if past:
            return "cache"
        if one and any(len(self.contexts[row]) > 1 or self.steps for row in live):
            return "last token" if picked or self._likeliest(rows, live) else None
        pairs = [(list(rows[row]), self.contexts[row]) for row in live]
        if all(row[:-1] == context for row, context in pairs):
            return "all"
        slides = all(_slides(row, context) for row, context in pairs)
        return "window" if slides and (picked or self.ways[-1:] == ["window"]) else None

    def _likeliest(self, rows: Sequence[Sequence[int]], live: Sequence[int]) -> bool:
        """Whether rows end with the likeliest token, chosen in a way that was not seen."""
        best = None if self.logits is None else self.logits.argmax(-1).tolist()
        return best is not None and all(best[row] == rows[row][-1] for row in live)

    def picked(self, tokens: Sequence[int]) -> Chosen | None:
        """The choice that gave these tokens, a draw before an argmax, the latest first."""
        live = [row for row in range(len(tokens)) if not self.is_over(row)]
        for chosen in sorted(reversed(self.chosen), key=lambda each: each.how != "draw"):
            given = last_of(chosen, len(tokens))
            if given is not None and all(given[row] == tokens[row] for row in live):
                return chosen
        return None

    def take(self, tokens: Sequence[int]) -> None:
        """A token a row was chosen."""
        chosen = self.picked(tokens)
        fits = self.steps < FITTED_STEPS
        best = None if self.logits is None else self.logits.argmax(-1).tolist()
        for row, token in enumerate(tokens):
            if not self.is_over(row):
                seen = fits and row < FITTED_ROWS
                draw, fitted = draw_of(row, self.steps, token, chosen, self.logits, seen)
                self.draws.append(draw)
                if fitted:
                    self.fitted.append(fitted)
                self.greedy &= best is not None and best[row] == token
        for row, token in enumerate(tokens):
            self.tokens[row].append(token)

    def final(self) -> list[int] | None:
        """What was chosen after the last pass: as the tokens before it were, if there were any."""
        usual = self.draws[-1].how if self.draws else None
        fitting = [
            tokens
            for each in self.chosen
            if usual in (None, each.how) and (tokens := last_of(each, len(self.tokens)))
        ]
        return fitting[-1] if fitting else None

    def settings(self, rule: Rule, fitted: Sequence[Fitted]) -> dict[str, Any]:
        """What its tokens say about how it was set; `fitted` are the draws of this place."""
        hows = {draw.how for draw in self.draws}
        found: dict[str, Any] = {
            "feeding": " then ".join(self.ways[:WAYS]) or "all",
            "num_beams": 1,
        }
        if rule.limit is not None:
            found["max_tokens"] = rule.limit
        if "draw" not in hows and (hows == {"argmax"} or self.greedy):
            return found | {"greedy": True}
        if "draw" in hows:
            found["greedy"] = False
        own = [each.temperature for each in self.fitted if each.temperature]
        temperatures = own or [each.temperature for each in fitted if each.temperature]
        if temperatures:
            found["temperature"] = round(median(temperatures), 4)
        return found | filters(fitted, self.size)

    def kept(self) -> list[list[int]]:
        """New tokens; in a batch those of a row up to its end."""
        return [
            row[: next((i for i, t in enumerate(row, 1) if t in self.eos), len(row))]
            if len(self.tokens) > 1
            else row
            for row in self.tokens
        ]


def _slides(row: list[int], context: list[int]) -> bool:
    """Whether a row is the end of a text that was fed, less its beginning, and one token more."""
    return 1 < len(row) <= len(context) and context[-(len(row) - 1) :] == row[:-1]


def last_of(chosen: Chosen, rows: int) -> list[int] | None:
    """A token a row: the last one where every position got one."""
    if not rows or chosen.tokens.numel() % rows:
        return None
    found: list[int] = chosen.tokens.reshape(rows, -1)[:, -1].tolist()
    return found


def unpadded(ids: torch.Tensor, mask: torch.Tensor | None) -> list[list[int]]:
    """Rows of ids without what the mask hides."""
    if mask is None or mask.ndim != 2 or mask.shape[-1] < ids.shape[-1]:
        return ids.tolist()
    seen = mask[:, mask.shape[-1] - ids.shape[-1] :].bool()
    return [row[keep].tolist() for row, keep in zip(ids.cpu(), seen.cpu(), strict=True)]


def end_tokens(module: Any) -> frozenset[int]:
    """Ids that end a text, as the model's configurations say."""
    found: list[int | None] = []
    for name in ("generation_config", "config"):
        value = getattr(getattr(module, name, None), "eos_token_id", None)
        found += value if isinstance(value, list | tuple) else [value]
    return frozenset(each for each in found if each is not None)


class Loops:
    """Follows the passes of a script and writes a `Generation` for every loop among them."""

    def __init__(self, recorder: Recorder) -> None:
        """Nothing is going on yet."""
        self.recorder = recorder
        self.loop: Loop | None = None
        self.over: dict[str | None, list[Loop]] = {}
        """Loops that are over, by the line of their prefill, and not written yet: what ended one
        shows in all of them."""
        self.places: set[str | None] = set()
        """Lines where a loop has begun."""
        self.told: set[str | None] = set()
        """Lines of which loops were written, the first with the state that it drew from."""

    def passed(self, seen: PassSeen) -> None:
        """Go on with the loop, or end it and take this pass for the prefill of another."""
        scored = seen.labels is not None or seen.event.phase == "train"
        if self.recorder.generating or scored or seen.ids is None or seen.ids.ndim != 2:
            self.close()
            return
        rows = unpadded(seen.ids, seen.mask)
        how = self.loop.follow(rows, seen.event.past) if self._same(seen) and self.loop else None
        if how is None or self.loop is None:
            self.close()
            self.loop = Loop(
                model=seen.event.model,
                where=seen.event.where,
                eos=end_tokens(seen.module),
                random=random_digest(),
                state=random_state(),
                contexts=[list(row) for row in rows],
                passes=[seen.event.index],
            )
        else:
            self._go_on(self.loop, rows, how, seen.event.index)
        self.loop.chosen.clear()
        if seen.logits is not None:
            self.loop.logits, self.loop.size = seen.logits.float().clone(), seen.logits.shape[-1]

    def _same(self, seen: PassSeen) -> bool:
        return self.loop is not None and self.loop.model == seen.event.model

    def _go_on(self, loop: Loop, rows: Sequence[Sequence[int]], how: str, index: int) -> None:
        loop.passes.append(index)
        if how == "more prompt":
            for context, row in zip(loop.contexts, rows, strict=True):
                context += row
            loop.prompts = [tuple(context) for context in loop.contexts]
            return
        loop.take([row[-1] for row in rows])
        if how == "window" and loop.ways[-1:] == ["all"]:
            loop.ways.pop()  # a window holds all until it is full
        if loop.ways[-1:] != [how]:
            loop.ways.append(how)
        for context, fed in zip(loop.contexts, rows, strict=True):
            context.append(fed[-1])

    def chose(self, chosen: Chosen) -> None:
        """Tokens were chosen; by the loop, if they are fed next."""
        if self.loop is not None and not self.recorder.generating:
            self.loop.chosen.append(chosen)
            del self.loop.chosen[:-MOST]

    def close(self) -> None:
        """End the loop that is going on, if it is one."""
        loop, self.loop = self.loop, None
        if loop is None:
            return
        last = loop.final()
        if not loop.steps and (last is None or loop.where not in self.places):
            return
        if last is not None:
            loop.take(last)
        loop.logits = None
        loop.chosen.clear()
        self.places.add(loop.where)
        over = self.over.setdefault(loop.where, [])
        over.append(loop)
        if len(over) == TOGETHER:
            self.write(loop.where)

    def write(self, place: str | None) -> None:
        """Write the loops of a place that are over."""
        over = self.over.pop(place)
        kept = [loop.kept() for loop in over]
        rule = Rule.of([row for rows in kept for row in rows], over[0].eos)
        fitted = [each for loop in over for each in loop.fitted][-FITTED_STEPS * FITTED_ROWS :]
        texts = self.recorder.data.texts
        stop = {"stop": list(texts([rule.stop]))} if rule.stop else {}
        for loop, tokens in zip(over, kept, strict=True):
            first = loop.state is not None and place not in self.told
            self.told.add(place)
            self.recorder.emit(
                Generation(
                    model=loop.model,
                    driver="loop",
                    settings=loop.settings(rule, fitted) | stop,
                    prompts=tuple(loop.prompts),
                    tokens=tuple(map(tuple, tokens)),
                    texts=texts(tokens),
                    ended=tuple(map(rule.ended, tokens)),
                    passes=tuple(loop.passes),
                    draws=tuple(loop.draws),
                    random=loop.random,
                    state="state" if first else None,
                    where=loop.where,
                ),
                {"state": loop.state} if first and loop.state is not None else None,
            )

    def end(self, _: Ending) -> None:
        """Write all that is left."""
        self.close()
        for place in tuple(self.over):
            self.write(place)


def install(recorder: Recorder) -> Undo:
    """Recognise loops from passes and choices, those of each thread by themselves."""
    every: list[Loops] = []

    class Local(threading.local):
        def __init__(self) -> None:
            self.loops = Loops(recorder)
            every.append(self.loops)

    def end(ending: Ending) -> None:
        for loops in every:
            loops.end(ending)

    local = Local()
    recorder.listen(PassSeen, lambda seen: local.loops.passed(seen))
    recorder.listen(Chosen, lambda chosen: local.loops.chose(chosen))
    recorder.listen(Ending, end)
    return lambda: None
