"""Every method, by the name it has in a configuration."""

from __future__ import annotations

from weft.methods.backprop import backprop
from weft.methods.estimate import Estimator

METHODS: dict[str, Estimator] = {
    "backprop": backprop,
}
