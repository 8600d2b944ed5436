"""How far apart two next-token distributions are, position by position, from fp32 log-softmax.

Shapes: S positions, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Divergence:
    """One number a position, [S] each, in nats where it is an information."""

    kl_ab: torch.Tensor  # KL(A || B) = sum_v a log(a / b)
    kl_ba: torch.Tensor
    js: torch.Tensor  # Jensen-Shannon: mean KL of both to their mixture; at most log 2
    l2: torch.Tensor  # Euclidean distance of the logits as they are
    agree: torch.Tensor  # both have the same most likely token


def divergence(logits_a_SV: torch.Tensor, logits_b_SV: torch.Tensor) -> Divergence:
    """Exact divergences over the whole vocabulary.

    L2 is of the raw logits, so it also sees a shift of all logits, which softmax does not.
    Probability zero is handled in the log domain: a finite logit never gives NaN. Rounding below
    zero is cut off, as no divergence is negative.
    """
    a_SV, b_SV = logits_a_SV.float(), logits_b_SV.float()
    log_a_SV, log_b_SV = a_SV.log_softmax(-1), b_SV.log_softmax(-1)
    log_m_SV = torch.logaddexp(log_a_SV, log_b_SV) - math.log(2)
    return Divergence(
        kl_ab=_kl(log_a_SV, log_b_SV),
        kl_ba=_kl(log_b_SV, log_a_SV),
        js=(_kl(log_a_SV, log_m_SV) + _kl(log_b_SV, log_m_SV)) / 2,
        l2=(a_SV - b_SV).norm(dim=-1),
        agree=a_SV.argmax(-1) == b_SV.argmax(-1),
    )


def _kl(log_p_SV: torch.Tensor, log_q_SV: torch.Tensor) -> torch.Tensor:
    return (log_p_SV.exp() * (log_p_SV - log_q_SV)).sum(-1).clamp(min=0.0)
