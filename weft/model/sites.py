"""Which weight matrices of a base can carry an adapter, and which of them a target names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from weft.core.errors import InputError, did_you_mean
from weft.model.adapter import Layout, Site, Slot
from weft.model.config import ALIASES, AdapterConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def find_sites(model: PreTrainedModel) -> dict[str, Site]:
    """Every place of `model` that can carry an adapter, by module path, in model order.

    Linear layers, GPT-2's Conv1D, and bare two-dimensional parameters that route tokens to
    experts. The output head is left out: its logits are computed at supervised positions only.
    """
    head = model.get_output_embeddings()
    found = {}
    for name, module in model.named_modules():
        if module is head:
            continue
        kind = _kind(name, module)
        if kind is None:
            continue
        rows, columns = module.weight.shape
        outputs, inputs = (columns, rows) if kind == "conv1d" else (rows, columns)
        found[name] = Site(name, kind, inputs, outputs, _layer_of(name))
    return found


def choose_sites(sites: dict[str, Site], config: AdapterConfig) -> Layout:
    """The layout that `config` asks for on these sites.

    Raises `InputError` for a target that matches nothing (with near matches), for layers that the
    base does not have, and for dropout on a router.
    """
    layers = _layers(sites, config.layers)
    if config.targets == "all-linear":
        chosen = [s for s in sites.values() if s.kind != "router"]
    else:
        chosen = _matching(sites, config.targets)
    if layers is not None:
        chosen = [s for s in chosen if s.layer in layers]
    if not chosen:
        raise InputError(
            f"adapter.targets {config.targets!r} match nothing in layers {config.layers!r}",
            hint="`weft inspect` on the base lists its sites",
        )
    if config.dropout and any(site.kind == "router" for site in chosen):
        raise InputError(
            "adapter.dropout cannot be used on a router: PEFT, for one, could not go on from it",
            hint="set adapter.dropout=0",
        )
    slots = (Slot(site, config.rank, config.effective_scale) for site in chosen)
    return Layout(tuple(slots))


def layers_notice(sites: dict[str, Site], config: AdapterConfig) -> str | None:
    """What to say where `last N` or `first N` is more than the base has."""
    have = {site.layer for site in sites.values() if site.layer is not None}
    if not isinstance(config.layers, str) or int(config.layers.split()[1]) <= len(have):
        return None
    return f"`adapter.layers` is `{config.layers}` and the base has {len(have)}: all are used"


def _matching(sites: dict[str, Site], targets: Sequence[str]) -> list[Site]:
    chosen: set[str] = set()
    for target in targets:
        wanted = {target, ALIASES.get(target, target)}
        hits = {n for n in sites if any(n == w or n.endswith(f".{w}") for w in wanted)}
        if not hits:
            leaves = sorted({name.rsplit(".", 1)[-1] for name in sites})
            near = did_you_mean(target, [*leaves, *sites])
            raise InputError(
                f"adapter.targets: {target!r} matches no module of the base",
                hint=(f"{near} " if near else "") + f"the base has: {', '.join(leaves)}",
            )
        chosen |= hits
    return [site for name, site in sites.items() if name in chosen]


def _layers(sites: dict[str, Site], wanted: tuple[int, ...] | str | None) -> set[int] | None:
    if wanted is None:
        return None
    have = sorted({s.layer for s in sites.values() if s.layer is not None})
    if isinstance(wanted, str):
        word, number = wanted.split()
        return set(have[-int(number) :] if word == "last" else have[: int(number)])
    layers = {n + len(have) if n < 0 else n for n in wanted}
    if missing := sorted(layers - set(have)):
        raise InputError(f"adapter.layers names {missing}, and the base has layers 0 to {have[-1]}")
    return layers


def _kind(name: str, module: torch.nn.Module) -> str | None:
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, torch.nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    is_router = weight is not None and weight.ndim == 2 and re.search(r"(gate|router)$", name)
    return "router" if is_router else None


def _layer_of(name: str) -> int | None:
    number = re.search(r"\.(\d+)\.", name)
    return int(number.group(1)) if number else None
