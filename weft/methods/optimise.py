"""From a direction to an update: clipping, schedules, decay, AdamW and SGD as plain functions.

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
    """What an optimiser remembers of each lane: updates made, running first and second moments."""

    updates_L: tuple[int, ...]
    first_LP: torch.Tensor
    second_LP: torch.Tensor

    @classmethod
    def fresh(cls, theta_LP: torch.Tensor) -> Moments:
        """Nothing seen yet."""
        zeros = torch.zeros_like
        return cls((0,) * len(theta_LP), zeros(theta_LP), zeros(theta_LP))

    def without(self, lane: int) -> Moments:
        """The same, with one lane's forgotten."""
        first_LP, second_LP = self.first_LP.clone(), self.second_LP.clone()
        first_LP[lane] = second_LP[lane] = 0
        updates_L = list(self.updates_L)
        updates_L[lane] = 0
        return Moments(tuple(updates_L), first_LP, second_LP)

    def _after(self, first_LP: torch.Tensor, second_LP: torch.Tensor) -> Moments:
        return Moments(tuple(count + 1 for count in self.updates_L), first_LP, second_LP)


Rule = Callable[
    [torch.Tensor, torch.Tensor, Moments, OptimiserConfig], tuple[torch.Tensor, Moments]
]
"""From a direction [L, P] and rates [L, 1] to a step [L, P], without weight decay."""


def adamw(
    direction_LP: torch.Tensor, lr_L1: torch.Tensor, moments: Moments, config: OptimiserConfig
) -> tuple[torch.Tensor, Moments]:
    """AdamW (arXiv 1711.05101), in the order of operations of `torch.optim.AdamW`."""
    beta1, beta2 = config.betas
    found = moments._after(
        moments.first_LP.lerp(direction_LP, 1 - beta1),
        (moments.second_LP * beta2).addcmul_(direction_LP, direction_LP, value=1 - beta2),
    )
    unbiased1_L1, unbiased2_L1 = (
        direction_LP.new_tensor([[1 - beta**count] for count in found.updates_L])
        for beta in config.betas
    )
    denominator_LP = (found.second_LP.sqrt() / unbiased2_L1.sqrt()).add_(config.eps)
    return -lr_L1 / unbiased1_L1 * (found.first_LP / denominator_LP), found


def sgd(
    direction_LP: torch.Tensor, lr_L1: torch.Tensor, moments: Moments, config: OptimiserConfig
) -> tuple[torch.Tensor, Moments]:
    """Gradient descent with heavy-ball momentum."""
    first_LP = moments.first_LP * config.momentum + direction_LP
    return -lr_L1 * first_LP, moments._after(first_LP, moments.second_LP)


OPTIMISERS: dict[str, Rule] = {"adamw": adamw, "sgd": sgd}


def update(
    theta_LP: torch.Tensor,
    direction_LP: torch.Tensor,
    lr_L1: torch.Tensor,
    moments: Moments,
    config: OptimiserConfig,
    *,
    unit_LP: torch.Tensor | None = None,
    start_LP: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Moments]:
    """Weight decay, and then a step of the rule.

    Decay is decoupled: the distance from 0, or from the start, shrinks by lr * decay. With units a
    direction is that of theta / unit, and so are the rule's step and the learning rate.
    """
    if config.weight_decay:
        kept_L1 = 1 - lr_L1 * config.weight_decay
        if config.decay_to == "zero":
            theta_LP = theta_LP * kept_L1
        else:
            assert start_LP is not None
            theta_LP = start_LP + (theta_LP - start_LP) * kept_L1
    step_LP, moments = OPTIMISERS[config.name](direction_LP, lr_L1, moments, config)
    return theta_LP + (step_LP if unit_LP is None else unit_LP * step_LP), moments


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
