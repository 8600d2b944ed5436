"""Cross-entropy at supervised positions over a frozen output head, in fp32 and in chunks.

Shapes: S targets, D hidden size, V vocabulary, c targets of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch

from weft.model.products import product

CHUNK_NUMBERS = 24_000_000
"""Logits held at a time (96 MB in fp32): with fewer, the head's matmul is slower."""


class HeadNLL(torch.autograd.Function):
    """Negative log-likelihood of tokens under softmax(h @ W^T + bias), with W frozen.

    The gradient for h is (softmax - onehot) @ W. It is formed while a chunk's logits are at hand,
    so the [S, V] logits never exist and the head is multiplied once each way. The idea is that of
    cut cross-entropy (arXiv 2411.09009), without the custom kernels.
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
        needs = ctx.needs_input_grad[0]
        nll_S = torch.empty(len(token_S), dtype=torch.float32, device=hidden_SD.device)
        grad_SD = torch.empty_like(hidden_SD) if needs else None
        for at in chunks(len(token_S), weight_VD.shape[0]):
            token_c = token_S[at, None]
            logits_cV = product(hidden_SD[at], weight_VD, bias_V).float()
            chosen_c1, most_c1 = logits_cV.gather(1, token_c), logits_cV.amax(-1, keepdim=True)
            p_cV = logits_cV.sub_(most_c1).exp_()  # each logit is an exponential once
            sum_c1 = p_cV.sum(-1, keepdim=True)
            nll_S[at] = (sum_c1.log() + (most_c1 - chosen_c1)).squeeze(1)
            if grad_SD is not None:
                p_cV.div_(sum_c1)
                p_cV.scatter_add_(1, token_c, p_cV.new_full(token_c.shape, -1.0))
                # over so many inputs BLAS is as fast as `product`, and writes where it is told
                torch.mm(p_cV.to(weight_VD.dtype), weight_VD, out=grad_SD[at])
        ctx.save_for_backward(grad_SD)
        return nll_S

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Chain rule: one scale a row."""
        (grad_SD,) = ctx.saved_tensors
        return (grad_SD * grads[0][:, None].to(grad_SD.dtype), None, None, None)


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
