"""From a direction to an update: clipping, schedules, AdamW and SGD as plain functions.

Shapes: L lanes, P parameters of one adapter. Lanes never mix: each is clipped by its own norm and
moves at its own rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from weft.methods.config import OptimiserConfig


@dataclass(frozen=True, eq=False)
class Moments:
    """What an optimiser remembers: updates made, and running first and second moments."""

    updates: int
    first_LP: torch.Tensor
    second_LP: torch.Tensor

    @classmethod
    def fresh(cls, theta_LP: torch.Tensor) -> Moments:
        """Nothing seen yet."""
        return cls(0, torch.zeros_like(theta_LP), torch.zeros_like(theta_LP))


Rule = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, Moments, OptimiserConfig],
    tuple[torch.Tensor, Moments],
]


def adamw(
    theta_LP: torch.Tensor,
    direction_LP: torch.Tensor,
    lr_L1: torch.Tensor,
    moments: Moments,
    config: OptimiserConfig,
) -> tuple[torch.Tensor, Moments]:
    """AdamW (arXiv 1711.05101), in the order of operations of `torch.optim.AdamW`."""
    beta1, beta2 = config.betas
    count = moments.updates + 1
    first_LP = moments.first_LP.lerp(direction_LP, 1 - beta1)
    second_LP = (moments.second_LP * beta2).addcmul_(direction_LP, direction_LP, value=1 - beta2)
    denominator_LP = (second_LP.sqrt() / math.sqrt(1 - beta2**count)).add_(config.eps)
    decayed_LP = theta_LP * (1 - lr_L1 * config.weight_decay)
    theta_LP = decayed_LP - lr_L1 / (1 - beta1**count) * (first_LP / denominator_LP)
    return theta_LP, Moments(count, first_LP, second_LP)


def sgd(
    theta_LP: torch.Tensor,
    direction_LP: torch.Tensor,
    lr_L1: torch.Tensor,
    moments: Moments,
    config: OptimiserConfig,
) -> tuple[torch.Tensor, Moments]:
    """Gradient descent with heavy-ball momentum and decoupled weight decay."""
    first_LP = moments.first_LP * config.momentum + direction_LP
    theta_LP = theta_LP * (1 - lr_L1 * config.weight_decay) - lr_L1 * first_LP
    return theta_LP, Moments(moments.updates + 1, first_LP, moments.second_LP)


OPTIMISERS: dict[str, Rule] = {"adamw": adamw, "sgd": sgd}


def clip(direction_LP: torch.Tensor, limit: float | None) -> tuple[torch.Tensor, tuple[float, ...]]:
    """Each lane's direction, shortened to `limit` if longer, and the norms before that.

    The arithmetic is that of `torch.nn.utils.clip_grad_norm_`.
    """
    norm_L = direction_LP.norm(dim=1)
    if limit is not None:
        direction_LP = direction_LP * (limit / (norm_L + 1e-6)).clamp(max=1.0)[:, None]
    return direction_LP, tuple(norm_L.tolist())


def rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """The factor on the learning rate at `step` (0-based) of `steps`.

    As transformers' schedules: linear warm-up from 0, then constant, linear to 0, or half a
    cosine to 0. With a warm-up the first step's rate is therefore 0.
    """
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    match config.schedule:
        case "constant":
            return 1.0
        case "linear":
            return max(0.0, 1.0 - done)
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
