"""How a side chooses tokens: as it was set, as it was seen, and replayed on its own logits.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import Any

import numpy as np

from weft.diagnose.sides.decoded import steps_of
from weft.diagnose.sides.evidence import Evidence
from weft.diagnose.sides.keyed import temperature_drawn
from weft.runs.evidence import Draw, Generation

STOPS = ("max_tokens", "min_tokens", "eos", "stop")
"""Settings that say when to end; all others of a generation say how to choose."""

NO_CHOICE = ("feeding", "pad", "use_cache", "seed", "num_return_sequences", "driver")
"""Settings that say neither."""

ONLY_DRAWN = ("temperature", "top_k", "top_p", "min_p", "typical_p")
"""Settings that nothing reads when the most likely token is taken."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "temperature": (1, None), "top_k": (0, -1, None), "top_p": (1, 0, None), "min_p": (0, None),
    "typical_p": (1, None), "repetition_penalty": (1, 0, None), "num_beams": (1, None),
    "length_penalty": (1, None),
}  # fmt: skip
"""Values that change nothing; of a setting that is not listed: None, 0, nothing."""

FILTERS = frozenset({"top_k", "top_p", "min_p"})
"""Settings that take tokens out."""

CLOSE = 0.02
"""Temperatures within this part of one another are one: they are fitted."""


@dataclass(frozen=True)
class Sampler:
    """What decides the choice, without what has no effect."""

    greedy: bool | None  # None: not known
    values: Mapping[str, Any]  # None: not known
    altered: int = 0  # greedy choices that were not the most likely token
    kept: int | None = None  # most tokens that could be drawn, where some could not
    first_filters: bool | None = None  # filters before the temperature, where that is known

    @property
    def words(self) -> str:
        """As one would say it."""
        known = {key: value for key, value in self.values.items() if value is not None}
        parts = [f"{key} {_plain(value)}" for key, value in sorted(known.items())]
        if self.greedy:
            return ", ".join(["takes the most likely token", *parts])
        what = "draws" if self.greedy is False else "chooses"
        order = {None: [], True: ["filters before temperature"], False: []}[self.first_filters]
        return " with ".join([what, ", ".join([*(parts or ["no filter"]), *order])])


def sampler_of(side: Evidence, generation: Generation) -> Sampler:
    """What was seen counts before what was set.

    Settings of a loop by hand are read off its draws, so all loops of a side are read together.
    """
    return _of_loops(side) if generation.driver == "loop" else _sampler(side, generation)


@lru_cache(maxsize=4)
def _of_loops(side: Evidence) -> Sampler:
    return _sampler(side, _together([each for each in side.generations if each.driver == "loop"]))


def _sampler(side: Evidence, generation: Generation) -> Sampler:
    draws = [each for each in generation.draws if each.how != "unknown"]
    greedy = generation.settings.get("greedy")
    if draws:
        greedy = all(each.how == "argmax" for each in draws)
    values = {
        key: value
        for key, value in generation.settings.items()
        if key not in (*STOPS, *NO_CHOICE, "greedy") and not _neutral(key, value)
    }
    if greedy:
        values = {key: value for key, value in values.items() if key not in ONLY_DRAWN}
    else:
        fitted = [each.temperature for each in draws if each.temperature is not None]
        if fitted and not close(median(fitted), values.get("temperature", 1.0)):
            values["temperature"] = round(median(fitted), 4)
        again = temperature_drawn(side, generation.model)
        if again is not None and not close(again, values.get("temperature", 1.0)):
            values["temperature"] = round(again, 4)
    unknown = generation.driver == "loop" and not greedy and "temperature" not in values
    if unknown and not any(each.temperature is not None for each in draws):
        values["temperature"] = None
    replayed = [
        one
        for each in (side.generations if generation.driver == "loop" else [generation])
        for one in _replay(side, each)
    ]
    orders = {each for each in (_order(generation, *one) for one in replayed) if each is not None}
    sizes = [draw.kept for _, draw in replayed if draw.kept is not None]
    vocabulary = max((len(logits_V) for logits_V, _ in replayed), default=0)
    return Sampler(
        greedy if greedy is None else bool(greedy),
        values,
        sum(d.how == "argmax" and d.token != int(np.argmax(x)) for x, d in replayed),
        max(sizes) if sizes and max(sizes) < vocabulary else None,
        orders.pop() if len(orders) == 1 else None,
    )


def _together(loops: Sequence[Generation]) -> Generation:
    """Completions of one loop, with whatever was seen of it in any of them."""
    known: dict[str, Any] = {}
    for each in loops:
        known = {**each.settings, **known}
    return loops[0].model_copy(
        update={"settings": known, "draws": tuple(draw for each in loops for draw in each.draws)}
    )


def _replay(side: Evidence, generation: Generation) -> Iterator[tuple[np.ndarray, Draw]]:
    """The logits of the model before each choice whose logits were recorded."""
    of = {(draw.row, draw.step): draw for draw in generation.draws if draw.how != "unknown"}
    first = min((step for _, step in of), default=1)
    for row in range(len(generation.prompts)):
        for step in steps_of(side, generation, row):
            draw = of.get((row, step.number - 1 + first))
            if draw is not None and step.logits is not None and np.isfinite(step.logits).any():
                yield step.logits, draw


def _order(generation: Generation, logits_V: np.ndarray, draw: Draw) -> bool | None:
    """Whether filters came before the temperature, by how many tokens were left of them."""
    settings = generation.settings
    temperature = draw.temperature or settings.get("temperature")
    if draw.kept is None or not temperature or temperature == 1:
        return None
    before, after = (kept(logits_V, settings, t) for t in (1.0, temperature))
    if before == after or draw.kept not in (before, after):
        return None
    return draw.kept == before


def kept(logits_V: np.ndarray, settings: Mapping[str, Any], temperature: float) -> int:
    """How many tokens top-k, then top-p, then min-p leave at a temperature."""
    from scipy.special import softmax

    p_V = np.sort(softmax(np.asarray(logits_V, np.float64) / temperature))[::-1]
    if (top_k := settings.get("top_k") or 0) > 0:
        p_V = p_V[:top_k] / p_V[:top_k].sum()
    if 0 < (top_p := settings.get("top_p") or 1.0) < 1:
        p_V = p_V[: int((np.cumsum(p_V) - p_V < top_p).sum())]
    if (min_p := settings.get("min_p") or 0.0) > 0:
        p_V = p_V[p_V >= min_p * p_V[0]]
    return len(p_V)


def differing(a: Sampler, b: Sampler) -> tuple[str, ...]:
    """Keys in which two samplers differ; `greedy` says all when only one of them draws."""
    if a.greedy is not None and b.greedy is not None and a.greedy != b.greedy:
        return ("greedy",)
    keys = [
        key
        for key in sorted({*a.values, *b.values})
        if not same(key, a.values.get(key), b.values.get(key))
        and not any(key in side.values and side.values[key] is None for side in (a, b))
    ]
    if not keys and bool(a.altered) != bool(b.altered):
        keys.append("logits")
    if not keys and (a.kept is None) != (b.kept is None):
        keys.append("kept")
    orders = {a.first_filters, b.first_filters}
    if not keys and orders == {True, False}:
        keys.append("order of filters")
    return tuple(keys)


def one_filter(a: tuple[Evidence, Generation], b: tuple[Evidence, Generation]) -> bool:
    """Whether the filters of each side explain the draws of the other as well as its own do.

    Filters of a loop by hand are read off how many tokens were left of its draws, so that two
    numbers may stand for one filter: nobody saw a choice in which they differ. Those that a side
    was given are known, and must explain the other's.
    """
    pairs = [(one, other) for one, other in ((a, b), (b, a)) if one[1].driver == "loop"]
    return bool(pairs) and all(_explains(*one, *other) for one, other in pairs)


def _explains(side: Evidence, mine: Generation, other: Evidence, its: Generation) -> bool:
    """Whether the other's filters leave as many tokens of one's own logits as one's own do."""
    own, theirs = sampler_of(side, mine).values, sampler_of(other, its).values
    seen = [
        (draw.kept, _left(logits_V, draw, own), _left(logits_V, draw, theirs))
        for each in (side.generations if mine.driver == "loop" else [mine])
        for logits_V, draw in _replay(side, each)
        if draw.kept is not None and draw.temperature
    ]
    missed = sum(count not in by_own for count, by_own, _ in seen)
    missed_by_its = sum(count not in by_its for count, _, by_its in seen)
    return bool(seen) and missed_by_its <= missed and 2 * missed <= len(seen)


def _left(logits_V: np.ndarray, draw: Draw, values: Mapping[str, Any]) -> tuple[int, ...]:
    """How many tokens filters leave, after the temperature or before it."""
    return tuple(kept(logits_V, values, t) for t in (draw.temperature or 1.0, 1.0))


def same(key: str, a: Any, b: Any) -> bool:
    """Whether two values of a setting of the sampler mean the same."""
    if a == b or (_neutral(key, a) and _neutral(key, b)):
        return True
    if key == "temperature":
        return close(a or 1.0, b or 1.0)
    return False


def close(a: float, b: float) -> bool:
    """Two temperatures that are one."""
    return abs(a - b) <= CLOSE * max(abs(a), abs(b))


def _neutral(key: str, value: Any) -> bool:
    if key in NEUTRAL:
        return value in NEUTRAL[key]
    return value is None or value in (0, False) or value in ([], (), {}, "")


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
