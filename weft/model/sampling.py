"""From logits to the next token: penalty, temperature, filters, and a draw with keyed noise.

A draw is exact and needs no sum over the vocabulary: with E_v exponential, the token that is
first, argmin E_v / p_v, has distribution p. The noise of a draw depends on the seed, the prompt
and the position alone, so batch mates change nothing, and members share it: where two members'
distributions are alike they mostly say the same.

Shapes: B rows, V vocabulary, R prompts, S seen tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from weft.core.keys import log_exponential
from weft.model.decoding import ORDERS, Decoding, request_keys

REMOVED = -math.inf

LIKELIEST, LARGE = 4096, 16_384
"""Top-p mostly keeps fewer tokens than that of a vocabulary larger than this, and to sort all of it
takes longer than to compute it."""


def distribution(logits_BV: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """The logits [B, V], in fp32, of the distribution to draw from; removed tokens have -inf."""
    order = ORDERS[decoding.order]
    # below the best one's: a small temperature makes -inf of them, and never inf
    logits_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
    if order.temperature_first:
        logits_BV = logits_BV / decoding.temperature
    for name in order.filters:
        logits_BV = FILTERS[name](logits_BV, getattr(decoding, name))
    return logits_BV if order.temperature_first else logits_BV / decoding.temperature


def keep_top_k(logits_BV: torch.Tensor, k: int) -> torch.Tensor:
    """The k most likely tokens, and those that tie with the last of them."""
    if not 0 < k < logits_BV.shape[1]:
        return logits_BV
    last_B1 = logits_BV.topk(k).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < last_B1, REMOVED)


def keep_top_p(logits_BV: torch.Tensor, p: float) -> torch.Tensor:
    """The most likely tokens that together have probability p, at least one (Holtzman 2019)."""
    if p >= 1:
        return logits_BV
    if logits_BV.shape[1] <= LARGE:
        return _sorted_top_p(logits_BV, p)
    likely_Bk, token_Bk = logits_BV.softmax(-1).topk(LIKELIEST)
    above_Bk = likely_Bk.cumsum(-1) - likely_Bk
    out_Bk = above_Bk >= p
    kept_BV = torch.full_like(logits_BV, REMOVED)
    kept_BV.scatter_(1, token_Bk, logits_BV.gather(1, token_Bk).masked_fill_(out_Bk, REMOVED))
    wide_B = ~out_Bk[:, -1]  # more tokens than these may belong to it
    if wide_B.any():
        kept_BV[wide_B] = _sorted_top_p(logits_BV[wide_B], p)
    return kept_BV


def _sorted_top_p(logits_BV: torch.Tensor, p: float) -> torch.Tensor:
    rising_BV, token_BV = logits_BV.sort(dim=-1)
    out_BV = rising_BV.softmax(-1).cumsum(-1) <= 1 - p
    out_BV[:, -1] = False
    return logits_BV.masked_fill(torch.zeros_like(out_BV).scatter(1, token_BV, out_BV), REMOVED)


def keep_min_p(logits_BV: torch.Tensor, p: float) -> torch.Tensor:
    """Tokens of at least the share p of the best one's probability (Nguyen 2024)."""
    if p <= 0:
        return logits_BV
    least_B1 = logits_BV.amax(-1, keepdim=True) + math.log(p)
    return logits_BV.masked_fill(logits_BV < least_B1, REMOVED)


FILTERS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "top_k": lambda logits_BV, k: keep_top_k(logits_BV, int(k)),
    "top_p": keep_top_p,
    "min_p": keep_min_p,
}


def penalise(logits_BV: torch.Tensor, seen_BS: torch.Tensor, penalty: float) -> torch.Tensor:
    """Make seen tokens less likely: positive logits / penalty, negative * penalty (Keskar 2019)."""
    score_BS = logits_BV.gather(1, seen_BS)
    less_BS = torch.where(score_BS > 0, score_BS / penalty, score_BS * penalty)
    return logits_BV.scatter(1, seen_BS, less_BS)


def seen_tokens(history_B: Sequence[Sequence[int]], window: int | None) -> torch.Tensor:
    """The last `window` tokens of each history (default: all), [B, S]; a short one repeats one."""
    recent_B = [np.asarray(history[-window:] if window else history) for history in history_B]
    seen_BS = np.empty((len(recent_B), max(map(len, recent_B))), dtype=np.int64)
    for seen_S, recent in zip(seen_BS, recent_B, strict=True):
        seen_S[: len(recent)] = recent
        seen_S[len(recent) :] = recent[-1]
    return torch.from_numpy(seen_BS)


def most_likely(logits_BV: torch.Tensor) -> torch.Tensor:
    """The first of the largest logits of each row; a NaN counts as the largest.

    On a CPU by NumPy, which compares several numbers at once: as one of them, PyTorch takes ten
    times as long.
    """
    if logits_BV.device.type != "cpu":
        return logits_BV.argmax(-1)
    return torch.from_numpy(logits_BV.numpy().argmax(-1))


class Chooser:
    """Chooses the next token of every row, position after position."""

    def __init__(
        self,
        decoding: Decoding,
        prompts: Sequence[np.ndarray],
        copies: Sequence[int] | None = None,
    ) -> None:
        self.decoding = decoding
        self.keys = [] if decoding.greedy else request_keys(decoding.seed, prompts, copies)
        self.position = 0

    def __call__(
        self, logits_BV: torch.Tensor, prompt_B: Sequence[int], history_B: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """token_B. `prompt_B` is the prompt of each row, `history_B` all its tokens so far."""
        logits_BV = logits_BV.float()
        if self.decoding.repetition_penalty != 1:
            seen_BS = seen_tokens(history_B, self.decoding.window).to(logits_BV.device)
            logits_BV = penalise(logits_BV, seen_BS, self.decoding.repetition_penalty)
        if self.decoding.greedy:
            return most_likely(logits_BV)
        prompts = dict.fromkeys(prompt_B)
        noise_RV = np.stack(
            [log_exponential(logits_BV.shape[1], self.keys[p], self.position) for p in prompts]
        )
        self.position += 1
        row = {prompt: at for at, prompt in enumerate(prompts)}
        noise_BV = torch.from_numpy(noise_RV)[[row[p] for p in prompt_B]].to(logits_BV.device)
        return most_likely(distribution(logits_BV, self.decoding) - noise_BV)
