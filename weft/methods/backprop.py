"""Backpropagation: the gradient itself."""

from __future__ import annotations

from weft.methods.config import BackpropConfig
from weft.methods.estimate import Estimate, Method, Point, Scorer


def estimate(config: BackpropConfig, point: Point, scorer: Scorer) -> Estimate:
    """The exact gradient of the mean loss over each batch."""
    found = scorer.gradient(point.theta_LP, point.batches, point.keys)
    direction_LP = found.gradient_LP
    if point.free_LP is not None:
        direction_LP = direction_LP * point.free_LP
    return Estimate(direction_LP, found.loss_L)


BACKPROP = Method(estimate)
