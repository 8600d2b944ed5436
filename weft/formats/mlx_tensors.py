"""The factors of mlx-lm and of the scripts before it, to and from Weft's.

A place in the model has `NAME.lora_a` [I, r] and `NAME.lora_b` [r, O]: the transposes of A and B.
One scale multiplies all of them. Shapes: r rank, I inputs and O outputs, H heads of D numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from transformers import PretrainedConfig

from weft.core.errors import InputError
from weft.formats import mlx_names
from weft.formats.mlx_places import Found
from weft.model.adapter import Adapter, Layout, Site, Slot


def assemble(
    found: Found[torch.Tensor],
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


def _infer(found: Found[torch.Tensor]) -> dict[str, Site]:
    """Sites by the names and shapes of their factors, when the base is not known."""
    sites = {}
    for name, pair in found.pairs.items():
        kind = mlx_names.from_mlx(found.places[name])[1]
        layer = re.search(r"\.(\d+)\.", name)
        inputs, outputs = pair["lora_a"].shape[0], pair["lora_b"].shape[1]
        sites[name] = Site(name, kind, inputs, outputs, int(layer[1]) if layer else None)
    return sites
