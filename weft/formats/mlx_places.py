"""The factors in a file of mlx-lm, or of the scripts before it, by the sites that they are for.

A place in the model has `NAME.lora_a` [I, r] and `NAME.lora_b` [r, O]: the transposes of A and B.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from weft.formats import mlx_names
from weft.formats.problems import Tensor, is_real, misfits, natural, strangers

if TYPE_CHECKING:
    from weft.model.adapter import Site


_FACTOR = re.compile(r"(?P<place>.+)\.lora_(?P<factor>[ab])")
_EMBEDDINGS = ("embed_tokens", "wte", "wpe", "embed_in", "word_embeddings", "embeddings")


AnyTensor = TypeVar("AnyTensor", bound=Tensor)


@dataclass(frozen=True)
class Found(Generic[AnyTensor]):
    """The factors in a file, by the sites that they are for."""

    pairs: Mapping[str, Mapping[str, AnyTensor]]  # site -> "lora_a" [I, r], "lora_b" [r, O]
    places: Mapping[str, str]  # site -> its name in the file
    foreign: tuple[str, ...]  # problems: what is no factor of plain LoRA
    meta: frozenset[str]  # sites in Meta's naming
    rotated: frozenset[str]  # those of them with B in Meta's rotary order

    def named(self) -> dict[str, AnyTensor]:
        """The factors by their names in the file."""
        return {f"{self.places[s]}.{f}": t for s, p in self.pairs.items() for f, t in p.items()}


def sort_out(
    tensors: Mapping[str, AnyTensor], sites: Mapping[str, Site] | None
) -> Found[AnyTensor]:
    """Which tensor is which factor of which site, in natural order of names."""
    known = mlx_names.sites_by_mlx_name(sites or ())
    pairs: dict[str, dict[str, AnyTensor]] = {}
    places: dict[str, str] = {}
    foreign, meta, rotated = [], set(), set()
    for name in sorted(tensors, key=natural):
        match, tensor = _FACTOR.fullmatch(name), tensors[name]
        problem = _meaning(name, tensor)
        if match is None or problem:
            foreign.append(f"tensor `{name}` {problem}")
            continue
        place = match["place"]
        today = mlx_names.from_meta(place)
        site = known.get(place, place) if sites is not None else mlx_names.from_mlx(place)[0]
        if today is not None:
            site, turned = today
            meta.add(site)
            rotated |= {site} if turned else set()
        if places.setdefault(site, place) != place:
            foreign.append(f"tensor `{name}` and `{places[site]}.*` are for the same place")
            continue
        pairs.setdefault(site, {})[f"lora_{match['factor']}"] = tensor
    return Found(pairs, places, tuple(foreign), frozenset(meta), frozenset(rotated))


def problems_of(
    found: Found[AnyTensor], sites: Mapping[str, Site] | None, rank: int | None
) -> list[str]:
    """Factors that are missing or fit neither each other, nor `rank`, nor the base."""
    known = None if sites is None else mlx_names.sites_by_mlx_name(sites)
    problems = list(
        strangers((n for s, n in found.places.items() if s not in (sites or ())), known)
    )
    for name, pair in found.pairs.items():
        site = (sites or {}).get(name)
        r = rank or (pair["lora_a"].shape[1] if "lora_a" in pair else pair["lora_b"].shape[0])
        inputs, outputs = (site.inputs, site.outputs) if site else (None, None)
        wanted = {"lora_a": (inputs, r), "lora_b": (r, outputs)}
        problems += misfits(found.places[name], pair, wanted)
    return problems


def _meaning(name: str, tensor: Tensor) -> str | None:
    """What a tensor is that plain LoRA on matrices has no place for; None for a factor of it."""
    owner, _, leaf = name.rpartition(".")
    if leaf == "m":
        return "is the magnitude of DoRA"
    if leaf in ("scales", "biases"):
        return "is of a quantised weight of the base"
    if leaf in ("weight", "bias"):
        return "replaces a weight of the base"
    if leaf not in ("lora_a", "lora_b"):
        return "is not known to Weft"
    if owner.rpartition(".")[2] in _EMBEDDINGS:
        return "adapts an embedding"
    if len(tensor.shape) == 3:
        return "adapts the experts of a mixture, three-dimensional as it is"
    if not is_real(tensor):
        return f"is {tensor.dtype}"
    if len(tensor.shape) != 2:
        return f"has {len(tensor.shape)} dimensions and not 2"
    return None
