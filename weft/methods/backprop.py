"""Backpropagation: the gradient itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from weft.core.batch import Batch
from weft.core.keys import Key
from weft.methods.config import BackpropConfig
from weft.methods.estimate import Estimate, Scorer


def backprop(
    config: BackpropConfig,
    theta_LP: torch.Tensor,
    batches: Sequence[Batch],
    keys: Sequence[Key],
    scorer: Scorer,
) -> Estimate:
    """The exact gradient of the mean loss over each batch's supervised tokens."""
    found = scorer.gradient(theta_LP, batches, keys)
    return Estimate(found.gradient_LP, found.loss_L)
