"""The factors of mlx-lm and of the scripts before it, to and from Weft's.

A place in the model has `NAME.lora_a` [I, r] and `NAME.lora_b` [r, O]: the transposes of A and B.
One scale multiplies all of them. Shapes: r rank, I inputs and O outputs, H heads of D numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from weft.core.errors import InputError
from weft.formats import mlx_names
from weft.formats.problems import misfits, natural, strangers
from weft.model.adapter import Adapter, Layout, Site, Slot

_FACTOR = re.compile(r"(?P<place>.+)\.lora_(?P<factor>[ab])")
_EMBEDDINGS = ("embed_tokens", "wte", "wpe", "embed_in", "word_embeddings", "embeddings")


@dataclass(frozen=True)
class Found:
    """The factors in a file, by the sites that they are for."""

    pairs: Mapping[str, Mapping[str, torch.Tensor]]  # site -> "lora_a" [I, r], "lora_b" [r, O]
    places: Mapping[str, str]  # site -> its name in the file
    foreign: tuple[str, ...]  # problems: what is no factor of plain LoRA
    meta: frozenset[str]  # sites in Meta's naming
    rotated: frozenset[str]  # those of them with B in Meta's rotary order

    def named(self) -> dict[str, torch.Tensor]:
        """The factors by their names in the file."""
        return {f"{self.places[s]}.{f}": t for s, p in self.pairs.items() for f, t in p.items()}


def sort_out(tensors: Mapping[str, torch.Tensor], sites: Mapping[str, Site] | None) -> Found:
    """Which tensor is which factor of which site, in natural order of names."""
    known = mlx_names.sites_by_mlx_name(sites or ())
    pairs: dict[str, dict[str, torch.Tensor]] = {}
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


def problems_of(found: Found, sites: Mapping[str, Site] | None, rank: int | None) -> list[str]:
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


def assemble(
    found: Found,
    sites: Mapping[str, Site] | None,
    scale: float,
    base_config: PretrainedConfig | None,
) -> Adapter:
    """The adapter of factors that have no problems; slots in the order of `sites`."""
    chosen = {name: s for name, s in (sites or _infer(found)).items() if name in found.pairs}
    layout = Layout(
        tuple(Slot(s, found.pairs[name]["lora_a"].shape[1], scale) for name, s in chosen.items())
    )
    flat = torch.empty(layout.size)
    for name, (a_rI, b_Or) in layout.factors(flat).items():
        a_rI.copy_(found.pairs[name]["lora_a"].T)
        b_Or.copy_(found.pairs[name]["lora_b"].T)
        if name in found.rotated:
            b_Or.copy_(half_split(b_Or, head_size(base_config, outputs=len(b_Or))))
    return Adapter(layout, flat)


def disassemble(
    adapter: Adapter, scale: float, rank: int | None, rename: Callable[[str], str]
) -> dict[str, torch.Tensor]:
    """The factors as files hold them, with one `scale` for all and, if given, padded to `rank`.

    Where a site's own scale is another one, its B is multiplied by the quotient, in double
    precision and rounded once; rows of zeros that pad a rank change nothing.
    """
    tensors = {}
    for name, (a_rI, b_Or) in adapter.sites.items():
        slot = adapter.layout.by_name[name]
        r = rank or slot.rank
        lora_a = torch.zeros(slot.site.inputs, r)
        lora_b = torch.zeros(r, slot.site.outputs)
        lora_a[:, : slot.rank] = a_rI.detach().T
        b_rO = b_Or.detach().cpu().T
        lora_b[: slot.rank] = b_rO if slot.scale == scale else b_rO.double() * (slot.scale / scale)
        tensors[f"{rename(name)}.lora_a"] = lora_a
        tensors[f"{rename(name)}.lora_b"] = lora_b
    return tensors


def common_scale(layout: Layout) -> float:
    """The scale of most sites; not 0, with which no other could be expressed, unless all are."""
    scales = Counter(slot.scale for slot in layout.slots if slot.scale)
    return scales.most_common(1)[0][0] if scales else 0.0


def half_split(b_Or: torch.Tensor, head_size: int) -> torch.Tensor:
    """Rows of q or k from Meta's rotary order, pairs side by side, to transformers': halves apart.

    Row 2j of a head becomes row j, and row 2j + 1 becomes row j + D/2.
    """
    outputs, rank = b_Or.shape
    b_HD2r = b_Or.reshape(outputs // head_size, head_size // 2, 2, rank)
    return b_HD2r.transpose(1, 2).reshape(outputs, rank)


def head_size(base_config: PretrainedConfig | None, outputs: int) -> int:
    """D, the size of an attention head; `InputError` where the base does not say, or not that."""
    if base_config is None:
        raise InputError(
            "the adapter is in Meta's rotary order, which mlx-examples used until 2024-01-09, and"
            " converting it takes the size of the base's attention heads",
            hint="say which base it is for",
        )
    config = base_config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if outputs % size or size % 2:
        raise InputError(f"{outputs} outputs of q or k are no whole number of heads of {size}")
    return int(size)


def _infer(found: Found) -> dict[str, Site]:
    """Sites by the names and shapes of their factors, when the base is not known."""
    sites = {}
    for name, pair in found.pairs.items():
        kind = mlx_names.from_mlx(found.places[name])[1]
        layer = re.search(r"\.(\d+)\.", name)
        inputs, outputs = pair["lora_a"].shape[0], pair["lora_b"].shape[1]
        sites[name] = Site(name, kind, inputs, outputs, int(layer[1]) if layer else None)
    return sites


def _meaning(name: str, tensor: torch.Tensor) -> str | None:
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
    if tensor.ndim == 3:
        return "adapts the experts of a mixture, three-dimensional as it is"
    if not tensor.is_floating_point():
        return f"is {tensor.dtype}"
    if tensor.ndim != 2:
        return f"has {tensor.ndim} dimensions and not 2"
    return None
