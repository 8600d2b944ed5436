"""Cross-entropy at supervised positions over a frozen output head, in fp32 and in chunks.

Shapes: S targets, D hidden size, V vocabulary, c targets of one chunk, b tokens of one part of the
vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from weft.model.products import product

CHUNK_NUMBERS = 24_000_000
"""Logits held at a time (96 MB in fp32): with fewer, the head's matmul is slower."""
PART_TOKENS, PART_TARGETS = 2048, 1024
"""On a CPU the loss takes so many tokens of the vocabulary at a time, and so many targets: what
becomes of their logits stays in the cache."""


class HeadNLL(torch.autograd.Function):
    """Negative log-likelihood of tokens under softmax(h @ W^T + bias), with W frozen.

    The gradient for h is (softmax - onehot) @ W. It is formed while the logits of a part of the
    vocabulary are at hand, against the largest logit so far; where a later part has a larger one,
    what has been summed up shrinks. So the [S, V] logits never exist, and the head is multiplied
    once each way. The idea is that of cut cross-entropy (arXiv 2411.09009), without the custom
    kernels.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_SD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        token_S: torch.Tensor,
    ) -> torch.Tensor:
        """nll_S in fp32."""
        grad_SD = torch.empty_like(hidden_SD) if ctx.needs_input_grad[0] else None
        nll = []
        for at, part in _parts(hidden_SD, weight_VD):
            grad_cD = None if grad_SD is None else grad_SD[at]
            nll.append(_nll(hidden_SD[at], weight_VD, bias_V, token_S[at], part, grad_cD))
        ctx.save_for_backward(grad_SD)
        return torch.cat(nll)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Chain rule: one scale a row."""
        (grad_SD,) = ctx.saved_tensors
        return (grad_SD * grads[0][:, None].to(grad_SD.dtype), None, None, None)


def _parts(hidden_SD: torch.Tensor, weight_VD: torch.Tensor) -> list[tuple[slice, int]]:
    """Slices of the targets, each with how many tokens of the vocabulary it takes at a time."""
    targets, vocabulary = len(hidden_SD), len(weight_VD)
    if hidden_SD.device.type != "cpu":
        return [(at, vocabulary) for at in chunks(targets, vocabulary)]
    starts = range(0, max(1, targets), PART_TARGETS)
    return [(slice(start, start + PART_TARGETS), PART_TOKENS) for start in starts]


def _nll(
    hidden_cD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    token_c: torch.Tensor,
    part: int,
    grad_cD: torch.Tensor | None,
) -> torch.Tensor:
    """nll_c, from parts of the vocabulary one after the other; writes the gradient of its sum."""
    token_c1 = token_c[:, None]
    lowest = torch.finfo(torch.float32).min
    most_c1 = torch.full(token_c1.shape, lowest, device=hidden_cD.device)
    sum_c1, chosen_c1 = torch.zeros_like(most_c1), torch.zeros_like(most_c1)
    pull_cD = None if grad_cD is None else torch.zeros_like(grad_cD, dtype=torch.float32)
    for start in range(0, len(weight_VD), part):
        weight_bD = weight_VD[start : start + part]
        bias_b = None if bias_V is None else bias_V[start : start + part]
        logits_cb = product(hidden_cD, weight_bD, bias_b).float()
        last = len(weight_bD) - 1
        place_c1 = token_c1 - start
        found_c1 = logits_cb.gather(1, place_c1.clamp(0, last))
        chosen_c1 = torch.where((place_c1 < 0) | (place_c1 > last), chosen_c1, found_c1)
        before_c1, most_c1 = most_c1, torch.maximum(most_c1, logits_cb.amax(-1, keepdim=True))
        shrunk_c1 = (before_c1 - most_c1).exp_()
        p_cb = logits_cb.sub_(most_c1).exp_()  # each logit is an exponential once
        sum_c1 = sum_c1.mul_(shrunk_c1).add_(p_cb.sum(-1, keepdim=True))
        if pull_cD is not None:
            pull_cD.mul_(shrunk_c1)
            pull_cD.add_(product(p_cb.to(weight_bD.dtype), weight_bD.T))
    if grad_cD is not None and pull_cD is not None:
        grad_cD.copy_(pull_cD.div_(sum_c1).sub_(weight_VD[token_c]))
    return (sum_c1.log() + (most_c1 - chosen_c1)).squeeze(1)


def chunks(targets: int, vocabulary: int) -> list[slice]:
    """Slices of the targets whose logits fit `CHUNK_NUMBERS`."""
    size = max(1, CHUNK_NUMBERS // vocabulary)
    return [slice(start, start + size) for start in range(0, targets, size)]


@torch.no_grad()
def head_scores(
    hidden_SD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    token_S: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(nll_S in fp32, correct_S): the loss, and whether the token is the most likely one."""
    nll, correct = [], []
    for at in chunks(len(token_S), weight_VD.shape[0]):
        logits_cV = product(hidden_SD[at], weight_VD, bias_V)
        nll_c, correct_c = logit_scores(logits_cV, token_S[at])
        nll.append(nll_c)
        correct.append(correct_c)
    return torch.cat(nll), torch.cat(correct)


def logit_scores(
    logits_SV: torch.Tensor, token_S: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(nll_S in fp32, correct_S) of given logits."""
    logits_SV = logits_SV.float()
    chosen_S = logits_SV.gather(1, token_S[:, None]).squeeze(1)
    return logits_SV.logsumexp(-1) - chosen_S, logits_SV.argmax(-1) == token_S
