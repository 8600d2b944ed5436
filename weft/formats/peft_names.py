"""The factors in PEFT's `adapter_model.safetensors`, by the sites that they are for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from weft.formats.peft_config import PeftConfig, beyond_lora
from weft.formats.problems import (
    Tensor,
    fit_words,
    is_real,
    misfits,
    natural,
    refuse,
    strangers,
)
from weft.model.config import ALIASES

if TYPE_CHECKING:
    from weft.model.adapter import Site

_FACTOR = re.compile(
    r"(?:base_model\.model\.)?(?P<site>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight"
)
_EXPERTS = re.compile(r"\.experts(\.base_layer)*$")  # one parameter for all of them

AnyTensor = TypeVar("AnyTensor", bound=Tensor)


def by_site(
    path: Path,
    tensors: Mapping[str, AnyTensor],
    config: PeftConfig,
    sites: Mapping[str, Site] | None = None,
) -> dict[str, dict[str, AnyTensor]]:
    """Factors "A" [r, I] and "B" [O, r] of each site.

    Whatever is more than plain LoRA is one `InputError`. `sites` are those of the base, where it
    is known: what does not fit them is an error, too.
    """
    factors, foreign = _sorted_out(tensors)
    refuse(
        f"the adapter {path} is more than W + scale * B @ A",
        beyond_lora(config) + foreign,
        hint="merge it into its base with PEFT (`merge_and_unload`) and use that as the base",
    )
    trained_on = config.base_model_name_or_path
    refuse(
        f"the adapter {path}{fit_words(trained_on, knows_base=sites is not None)}",
        [
            *strangers(factors, sites),
            *(p for name in factors for p in _misfits(name, factors[name], config, sites)),
        ],
        hint="load it on the base model that it was trained on" if sites is not None else None,
    )
    return factors


def _sorted_out(
    tensors: Mapping[str, AnyTensor],
) -> tuple[dict[str, dict[str, AnyTensor]], list[str]]:
    """The factors of each site in natural order of names, and what is not a factor of LoRA."""
    factors: dict[str, dict[str, AnyTensor]] = {}
    foreign = []
    for name in sorted(tensors, key=natural):
        match = _FACTOR.fullmatch(name)
        if match is None:
            foreign.append(f"tensor `{name}` {_meaning(name)}")
        elif _EXPERTS.search(match["site"]):
            foreign.append(f"tensor `{name}` adapts the experts of a mixture")
        elif not is_real(tensors[name]):
            foreign.append(f"tensor `{name}` is {tensors[name].dtype}")
        elif match["factor"] in (pair := factors.setdefault(_today(match["site"]), {})):
            foreign.append(f"tensor `{name}` is a second one for the same place")
        else:
            pair[match["factor"]] = tensors[name]
    return factors, foreign


def _today(site: str) -> str:
    """The name of a site in transformers 5, for adapters of modules that have moved since."""
    for old, new in ALIASES.items():
        if site.endswith(f".{old}"):
            return site.removesuffix(old) + new
    return site


def _meaning(name: str) -> str:
    """What a tensor is that plain LoRA has no place for."""
    if "lora_magnitude_vector" in name:
        return "is the magnitude of DoRA"
    if "lora_embedding_" in name:
        return "adapts an embedding"
    if re.search(r"lora_[AB](\.default)?\.bias$", name):
        return "is the bias of `lora_bias`"
    if name.endswith(".base_layer.weight"):
        return "stores a weight of the base; PEFT leaves it out with `save_embedding_layers=False`"
    if "lora_" not in name:
        return "replaces a weight of the base"
    return "is not known to Weft"


def _misfits(
    name: str, pair: Mapping[str, Tensor], config: PeftConfig, sites: Mapping[str, Site] | None
) -> Iterator[str]:
    """Factors of one site that are missing, or of another shape than the base or the rank asks."""
    rank = config.rank(name)
    site = (sites or {}).get(name)
    inputs, outputs = (site.inputs, site.outputs) if site else (None, None)
    found = {f"lora_{factor}": tensor for factor, tensor in pair.items()}
    return misfits(name, found, {"lora_A": (rank, inputs), "lora_B": (outputs, rank)})
