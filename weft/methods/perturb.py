"""Random directions from keys, and what the losses around a point say of the gradient.

A direction is never stored: its key draws the same numbers when the members are built, when the
estimate is formed, and when a run is replayed.

Shapes: L lanes, P parameters of an adapter, Q directions, q directions held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from weft.core.batch import spans
from weft.core.keys import Key
from weft.methods.config import AT_A_TIME
from weft.methods.estimate import Point
from weft.model.noise import normal, rademacher

NOISES: dict[str, Callable[[int, Key], torch.Tensor]] = {
    "gaussian": normal,
    "rademacher": rademacher,
}
"""Laws of a direction's numbers: independent, with mean 0 and variance 1."""


def draw(noise: str, point: Point, numbers: Sequence[int]) -> torch.Tensor:
    """The directions with these numbers for every lane, [L, q, P]; 0 where nothing may move."""
    size = point.theta_LP.shape[1]
    z_LqP = torch.stack(
        [
            torch.stack([NOISES[noise](size, key.fold("direction", n)) for n in numbers])
            for key in point.keys
        ]
    ).to(point.theta_LP.device)
    return z_LqP if point.free_LP is None else z_LqP * point.free_LP[:, None]


def combine(noise: str, point: Point, slope_LQ: np.ndarray) -> torch.Tensor:
    """The mean of slope * direction, [L, P]: not the product of the two means."""
    total_LP = torch.zeros_like(point.theta_LP)
    directions = slope_LQ.shape[1]
    for start, stop in spans(directions, AT_A_TIME):
        here_Lq1 = torch.from_numpy(slope_LQ[:, start:stop, None])
        here_Lq1 = here_Lq1.to(total_LP.device, total_LP.dtype)
        total_LP += (here_Lq1 * draw(noise, point, range(start, stop))).sum(dim=1)
    return total_LP / directions
