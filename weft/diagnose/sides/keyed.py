"""Weft's own draws drawn again: its noise is known, so tokens tell what they were drawn from.

A token is the largest of logits / temperature - noise, and the noise depends on the seed, the
prompt and the position alone (`weft.model.sampling`). So each token bounds the temperature.

Shapes: V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from weft.core.keys import log_exponential
from weft.diagnose.sides.decoded import steps_of
from weft.diagnose.sides.evidence import Evidence
from weft.model.decoding import ORDERS, request_keys

UNLIKELY = 1e-6
"""Tokens that other noise gives more often than this do not show which temperature they had."""

RANGE = 100.0
"""A temperature is looked for up to this factor off the one that was set."""

TRIED = 33
"""Temperatures tried between the bounds: filters make the upper one loose."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """One token with all that decided it, the temperature aside."""

    token: int
    logits_V: np.ndarray
    noise_V: np.ndarray


@lru_cache(maxsize=4)
def temperature_drawn(side: Evidence, model: str) -> float | None:
    """The temperature that gives every token of a model with the noise of its declared seed.

    The one that was set where that one does; None where none does, or too little is known.
    """
    said = [
        each
        for each in side.generations
        if each.model == model and each.driver == "weft" and not each.settings.get("greedy")
    ]
    settings = said[0].settings if said else {}
    declared, seed = settings.get("temperature"), settings.get("seed")
    if not declared or not isinstance(seed, int):
        return None
    keys = request_keys(seed, [np.array(each.prompts[0]) for each in said])
    draws = []
    for each, key in zip(said, keys, strict=True):
        for step in steps_of(side, each, 0):
            if step.logits is None or not np.isfinite(step.logits).all():
                continue
            logits_V = _penalised(step.logits, step.text, settings)
            noise_V = log_exponential(len(logits_V), key, step.number - 1)
            draws.append(Drawn(step.token, logits_V, noise_V))
    if not draws or _gives(declared, draws, settings):
        return declared if draws else None
    return _other(declared, draws, settings)


def _other(declared: float, draws: Sequence[Drawn], settings: Mapping[str, Any]) -> float | None:
    """A temperature that is not the declared one and gives all tokens."""
    low = max([declared / RANGE, *(bound for each in draws for bound in _least(each))])
    if not low < declared * RANGE:
        return None
    high = min([declared * RANGE, *(bound for e in draws for bound in _most(e, low, settings))])
    if not low < high:
        return None
    tried = np.geomspace(low, high, TRIED + 2)[1:-1]
    giving = [float(t) for t in tried if _gives(t, draws, settings)]
    if not giving:
        return None
    middle = giving[len(giving) // 2]
    chance = sum(_log_probability(each, middle, settings) for each in draws)
    return middle if chance < math.log(UNLIKELY) else None


def _least(draw: Drawn) -> Iterator[float]:
    """The temperature from which on a token wins over likelier ones; filters never take those."""
    gap_V, lead_V = draw.logits_V - draw.logits_V[draw.token], draw.noise_V - _own_noise(draw)
    over = gap_V > 0
    if over.any():
        yield float((gap_V[over] / lead_V[over]).max()) if (lead_V[over] > 0).all() else math.inf


def _most(draw: Drawn, low: float, settings: Mapping[str, Any]) -> Iterator[float]:
    """The one up to which it wins over less likely ones, those that filters leave at `low`.

    They leave no fewer at any higher temperature.
    """
    gap_V, lead_V = draw.logits_V - draw.logits_V[draw.token], draw.noise_V - _own_noise(draw)
    under = (gap_V < 0) & (lead_V < 0) & np.isfinite(_scores(draw, low, settings))
    if under.any():
        yield float((gap_V[under] / lead_V[under]).min())


def _own_noise(draw: Drawn) -> float:
    return float(draw.noise_V[draw.token])


def _gives(temperature: float, draws: Sequence[Drawn], settings: Mapping[str, Any]) -> bool:
    return all(
        int((_scores(each, temperature, settings) - each.noise_V).argmax()) == each.token
        for each in draws
    )


def _log_probability(draw: Drawn, temperature: float, settings: Mapping[str, Any]) -> float:
    scores_V = _scores(draw, temperature, settings).astype(np.float64)
    return float(scores_V[draw.token] - np.logaddexp.reduce(scores_V))


def _scores(draw: Drawn, temperature: float, settings: Mapping[str, Any]) -> np.ndarray:
    """Logits of the distribution that is drawn from, with -inf for what filters remove."""
    order = ORDERS[settings.get("order", "hf")]
    scores_V = draw.logits_V - draw.logits_V.max()
    if order.temperature_first:
        scores_V = scores_V / np.float32(temperature)
    for name in order.filters:
        scores_V = _filtered(scores_V, name, settings.get(name) or 0)
    return scores_V if order.temperature_first else scores_V / np.float32(temperature)


def _filtered(scores_V: np.ndarray, name: str, value: float) -> np.ndarray:
    if name == "top_k" and 0 < value < len(scores_V):
        gone_V = scores_V < np.sort(scores_V)[-int(value)]
    elif name == "top_p" and 0 < value < 1:
        rising_V = np.argsort(scores_V, kind="stable")
        p_V = np.exp(scores_V[rising_V])
        gone_V = np.zeros(len(p_V), bool)
        gone_V[rising_V[:-1]] = (np.cumsum(p_V) / p_V.sum() <= 1 - value)[:-1]
    elif name == "min_p" and value > 0:
        gone_V = scores_V < scores_V.max() + np.float32(math.log(value))
    else:
        return scores_V
    return np.where(gone_V, np.float32(-np.inf), scores_V)


def _penalised(
    logits_V: np.ndarray, text: tuple[int, ...], settings: Mapping[str, Any]
) -> np.ndarray:
    """With the logits of seen tokens made less likely, as a repetition penalty does."""
    penalty = settings.get("repetition_penalty") or 1.0
    found_V = np.array(logits_V, np.float32)
    if penalty != 1:
        window = settings.get("repetition_window") or 0
        seen = sorted({*text[-window:]})
        own = found_V[seen]
        found_V[seen] = np.where(own > 0, own / np.float32(penalty), own * np.float32(penalty))
    return found_V
