"""Where the adapters of a run begin, and how large the noise around them is.

Shapes: L lanes, P parameters of one adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.formats.loaded import LoadedAdapter
from weft.methods.boosting import fresh
from weft.methods.calibrate import Noise, spread
from weft.model.adapter import Adapter, Layout, Site
from weft.model.magnitude import Magnitudes
from weft.training.config import RunConfig
from weft.training.refs import locate, read_adapter

NOISE = "noise"
"""The result that says how large weights and noise are, site by site."""


def starts(config: RunConfig, layout: Layout, given: Adapter | None) -> torch.Tensor:
    """Each lane's first adapter, [L, P]: the given one, zero, or drawn from the lane's seed."""
    if given is not None:
        return given.flat.repeat(len(config.lanes), 1)
    if config.adapter.init == "zero":
        return torch.zeros(len(config.lanes), layout.size)
    return torch.stack([fresh(layout, Key.of(lane.seed), 0) for lane in config.lanes])


def read_start(ref: str, layout: Layout, sites: Mapping[str, Site]) -> Adapter:
    """The adapter that `start` names, if it is one of this layout; else an `InputError`."""
    place = locate(ref)
    if len(place.adapters) != 1:
        raise InputError(
            f"`start` is {ref}, which has {len(place.adapters)} adapters: one is needed",
            hint="give an adapter directory: of a run with several, one of its members",
        )
    (path,) = place.adapters.values()
    return _fitted(ref, read_adapter(path, sites), layout)


def _fitted(ref: str, loaded: LoadedAdapter, layout: Layout) -> Adapter:
    theirs = {n: (s.rank, s.scale) for n, s in loaded.adapter.layout.by_name.items()}
    ours = {n: (s.rank, s.scale) for n, s in layout.by_name.items()}
    if theirs != ours:
        raise InputError(
            f"`start` is {ref}, with {_shape(theirs.values())} at {len(theirs)} sites, and this "
            f"run trains {_shape(ours.values())} at {len(ours)} sites",
            hint="set adapter.rank, adapter.alpha, adapter.targets and adapter.layers to its own",
        )
    factors = loaded.adapter.sites
    return Adapter(layout, torch.cat([part.flatten() for name in ours for part in factors[name]]))


def _shape(facts: Iterable[tuple[int, float]]) -> str:
    kinds = sorted(set(facts))
    return " and ".join(f"rank {rank} and scale {scale:g}" for rank, scale in kinds[:3])


def noise_record(
    sizes: Magnitudes, layout: Layout, noises: Mapping[str, Noise], start_LP: torch.Tensor
) -> dict[str, Any]:
    """Weights and noise site by site, and what noise does to each update, for each member."""
    outliers = sizes.outliers
    return {
        "median_abs_weight": sizes.median,
        "sites": {
            name: {"mean_abs_weight": size, "outlier": name in outliers}
            for name, size in sizes.mean_abs.items()
        },
        "members": {
            member: {
                name: {
                    "a": noise.by_site[name][0],
                    "b": noise.by_site[name][1],
                    "update": spread(
                        layout.by_name[name],
                        noise.by_site[name],
                        *(float(x.double().square().mean().sqrt()) for x in factors),
                    ),
                }
                for name, factors in layout.factors(start_P).items()
            }
            for (member, noise), start_P in zip(noises.items(), start_LP, strict=True)
        },
    }


def recorded_noise(record: Mapping[str, Any], layout: Layout) -> torch.Tensor:
    """The noise [L, P] that `noise_record` stored."""
    noises = [
        Noise({name: (site["a"], site["b"]) for name, site in sites.items()})
        for sites in record["members"].values()
    ]
    return torch.stack([noise.expanded(layout) for noise in noises])
