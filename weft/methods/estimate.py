"""A method is a gradient estimator: the one thing in which training methods differ.

Shapes: L adapters that train together (lanes), P parameters of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from weft.core.batch import Batch
from weft.core.keys import Key


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimate of the gradient at theta, and what was seen on the way.

    `loss_L` is the loss at theta itself, in nats a supervised token. `stats` are further numbers
    for the step's record, one a lane; `evidence` is enough to replay the direction.
    """

    direction_LP: torch.Tensor
    loss_L: tuple[float, ...]
    stats: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    evidence: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, eq=False)
class Gradient:
    """The gradient of each lane's mean loss, with the loss it was taken of."""

    gradient_LP: torch.Tensor
    loss_L: tuple[float, ...]


class Scorer(Protocol):
    """What a method needs of an engine."""

    def gradient(
        self, theta_LP: torch.Tensor, batches: Sequence[Batch], keys: Sequence[Key]
    ) -> Gradient:
        """Each lane's gradient on its own batch; `keys` name the lanes' dropout noise."""
        ...


class Estimator(Protocol):
    """`METHODS` maps names to these."""

    def __call__(
        self,
        config: Any,
        theta_LP: torch.Tensor,
        batches: Sequence[Batch],
        keys: Sequence[Key],
        scorer: Scorer,
    ) -> Estimate:
        """The direction in which each lane's loss grows, from that lane's batch."""
        ...
