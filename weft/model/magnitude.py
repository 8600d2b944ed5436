"""How large a base's weights are, matrix by matrix: what the noise of a population is scaled by.

Only the two-dimensional weights count: biases are larger by orders of magnitude in some models
(Qwen2's q, k and v), and a mean over both says nothing of either.

Shapes: O outputs and I inputs of a site.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from weft.model.adapter import Site
from weft.model.base import Base

OUTLIER = 5.0
"""How many times larger or smaller than the median an outlier is."""


@dataclass(frozen=True)
class Magnitudes:
    """The mean absolute value of each site's weight, by site."""

    mean_abs: Mapping[str, float]

    @property
    def median(self) -> float:
        """Of all sites."""
        return median(self.mean_abs.values())

    @property
    def outliers(self) -> dict[str, float]:
        """The sites whose weight is far from the median, each with how many times it is that."""
        usual = self.median
        times = {name: size / usual for name, size in self.mean_abs.items()} if usual else {}
        return {n: t for n, t in times.items() if t > OUTLIER or t < 1 / OUTLIER}

    def notice(self) -> str | None:
        """The outliers in words, if there are any."""
        if not self.outliers:
            return None
        named = ", ".join(f"{name} ({times:.2g}x)" for name, times in self.outliers.items())
        return f"noise: weights that are far from the median of {self.median:.3g}: {named}"


def magnitudes(base: Base, sites: Iterable[Site]) -> Magnitudes:
    """Mean |W| of the weights that these sites change, summed in float64."""
    weights = dict(base.model.named_parameters())
    found = {}
    for site in sites:
        weight = weights.get(f"{site.name}.weight", weights.get(site.name))
        assert weight is not None and weight.dim() == 2, site.name
        found[site.name] = float(weight.detach().abs().double().mean())
    return Magnitudes(found)
