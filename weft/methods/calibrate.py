"""How large the noise on A and B is at each site, from the weights that they change.

    weight space   the update's change has standard deviation f * mean|W|: with rms(A), rms(B) of
                   the start, scale s and rank r it is
                   s * sqrt(r) * sqrt(rms(B)^2 a^2 + rms(A)^2 b^2 + a^2 b^2)
    factor space   a = b = f * the mean over a layer's targets of mean|W|   (cfpark00/evo-llm)
    fixed          a = b = sigma                                            (arXiv 2509.24372)

Shapes: P parameters of one adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from weft.core.errors import InputError
from weft.methods.config import NoiseConfig
from weft.model.adapter import Layout, Slot

Sizes = tuple[float, float]
"""Standard deviations of the noise on A and on B."""


@dataclass(frozen=True)
class Noise:
    """The standard deviation of the noise on A and B, by site."""

    by_site: Mapping[str, Sizes]

    def expanded(self, layout: Layout) -> torch.Tensor:
        """For each parameter, [P] fp32."""
        sizes_P = torch.zeros(layout.size)
        for name, factors in layout.factors(sizes_P).items():
            for factor, size in zip(factors, self.by_site[name], strict=True):
                factor.fill_(size)
        return sizes_P


def calibrate(
    config: NoiseConfig,
    layout: Layout,
    mean_abs: Mapping[str, float],
    start_P: torch.Tensor,
    only_b: bool = False,
) -> Noise:
    """The noise around a start; `mean_abs` is mean |W| of each site's weight.

    Raises `InputError` where no size of noise changes the function.
    """
    dead = [name for name, (a_rI, _) in layout.factors(start_P).items() if not a_rI.any()]
    if only_b and dead:
        raise InputError(
            f"{dead[0]}: A is zero and only B moves, so the adapter can never do anything",
            hint="start from an adapter whose A is not zero, or leave out adapter.factors=b",
        )
    return Noise(SPACES[config.space](config, layout, mean_abs, start_P, only_b))


def _weight_space(
    config: NoiseConfig,
    layout: Layout,
    mean_abs: Mapping[str, float],
    start_P: torch.Tensor,
    only_b: bool,
) -> dict[str, Sizes]:
    """A moves by the same fraction of its own size, and B takes the rest.

    A's share is at most half of the variance. Where A is zero, both move alike.
    """
    found = {}
    for name, (a_rI, b_Or) in layout.factors(start_P).items():
        slot = layout.by_name[name]
        rms_a, rms_b = _rms(a_rI), _rms(b_Or)
        wanted = config.fraction * mean_abs[name] / (slot.scale * math.sqrt(slot.rank))
        if only_b:
            found[name] = 0.0, wanted / rms_a
        elif rms_a == 0:
            found[name] = _both_alike(wanted, rms_b)
        else:
            a = config.fraction * rms_a
            if rms_b * a > wanted / math.sqrt(2):
                a = wanted / math.sqrt(2) / rms_b
            found[name] = a, math.sqrt((wanted**2 - (rms_b * a) ** 2) / (rms_a**2 + a**2))
    return found


def _both_alike(wanted: float, rms_b: float) -> Sizes:
    """The a = b that solves rms_b^2 a^2 + a^4 = wanted^2."""
    size = math.sqrt((math.sqrt(rms_b**4 + 4 * wanted**2) - rms_b**2) / 2)
    return size, size


def _factor_space(
    config: NoiseConfig,
    layout: Layout,
    mean_abs: Mapping[str, float],
    start_P: torch.Tensor,
    only_b: bool,
) -> dict[str, Sizes]:
    layers: dict[int | None, list[float]] = {}
    for slot in layout.slots:
        layers.setdefault(slot.site.layer, []).append(mean_abs[slot.site.name])
    size = {layer: config.fraction * sum(all) / len(all) for layer, all in layers.items()}
    return {s.site.name: _alike(size[s.site.layer], only_b) for s in layout.slots}


def _fixed(
    config: NoiseConfig,
    layout: Layout,
    mean_abs: Mapping[str, float],
    start_P: torch.Tensor,
    only_b: bool,
) -> dict[str, Sizes]:
    assert config.sigma is not None
    return {slot.site.name: _alike(config.sigma, only_b) for slot in layout.slots}


def _alike(size: float, only_b: bool) -> Sizes:
    return (0.0 if only_b else size), size


SPACES: dict[
    str,
    Callable[[NoiseConfig, Layout, Mapping[str, float], torch.Tensor, bool], dict[str, Sizes]],
] = {"weight": _weight_space, "factor": _factor_space, "fixed": _fixed}


def spread(slot: Slot, sizes: Sizes, rms_a: float, rms_b: float) -> float:
    """The standard deviation of the change of scale * B @ A, exact for independent noise."""
    a, b = sizes
    inner = (rms_b * a) ** 2 + (rms_a * b) ** 2 + (a * b) ** 2
    return slot.scale * math.sqrt(slot.rank * inner)


def _rms(factor: torch.Tensor) -> float:
    return float(factor.double().square().mean().sqrt())
