"""Adapters in mlx-lm's format: `adapters.safetensors` and `adapter_config.json`.

The tensors decide what is adapted, and the one `scale` of the configuration multiplies B @ A
itself. mlx-lm has one rank and one scale for all places; what differs is put into the factors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from transformers import PretrainedConfig

from weft.core.files import atomic_dir, read_json, write_atomic, write_json
from weft.formats import mlx_places, mlx_scale, mlx_tensors
from weft.formats.folder import (
    CONFIG,
    USUAL,
    find_tensors,
    refuse_to_overwrite,
    require_tensors,
)
from weft.formats.loaded import LoadedAdapter
from weft.formats.mlx_config import MlxConfig, beyond_lora, candidates
from weft.formats.mlx_names import to_mlx
from weft.formats.problems import fit_words, not_finite, parsed, refuse
from weft.formats.tensors import read_safetensors
from weft.model.adapter import Adapter, Site

TENSORS = USUAL["mlx"]
_ALL_LAYERS = -1
_BLOCK = re.compile(r"(?P<list>.*?\.)(?P<layer>\d+)\.(?P<key>.+)")


def detect(path: Path) -> bool:
    """Whether `path`, a directory or a tensor file, holds an adapter in mlx-lm's layout."""
    return find_tensors(path, "mlx", TENSORS) is not None


def read(
    path: Path,
    sites: Mapping[str, Site] | None = None,
    *,
    scale: float | None = None,
    base_config: PretrainedConfig | None = None,
) -> LoadedAdapter:
    """Read an adapter that mlx-lm, or `write`, wrote: a directory, or its tensor file.

    `sites` are all adaptable sites of the base: tensors that do not fit them are one `InputError`,
    and the slots come in their order. Without `sites`, kinds and shapes are taken from the files.
    `scale` goes before what the files say. Without it, files that leave the scale open (no
    configuration, or an old one) are an `UndecidedScale`.
    """
    file = require_tensors(path, "mlx", TENSORS, "an adapter of mlx-lm")
    source = file.parent / CONFIG
    fields: dict[str, Any] = read_json(source) if source.is_file() else {}
    config = parsed(MlxConfig, fields, f"{source} is not mlx-lm's configuration")
    found = mlx_places.sort_out(read_safetensors(file), sites)
    refuse(
        f"the adapter {path} is more than W + scale * B @ A",
        [*beyond_lora(config), *found.foreign],
        hint="fuse it into its base with `mlx_lm.fuse` and use that as the base",
    )
    trained_on = config.model or fields.get("base_model_name_or_path")
    refuse(
        f"the adapter {path}{fit_words(trained_on, knows_base=sites is not None)}",
        mlx_places.problems_of(found, sites, config.lora.rank),
        hint="load it on the base model that it was trained on" if sites is not None else None,
    )
    decided = mlx_scale.decide(f"the adapter {path}", *candidates(config, found), given=scale)
    return LoadedAdapter(
        adapter=mlx_tensors.assemble(found, sites, decided.scale, base_config),
        config=fields,
        base_ref=trained_on or None,
        notes=(*decided.notes, *not_finite(found.named())),
        format="mlx",
        scale_from=decided.reason,
    )


def write(
    adapter: Adapter,
    directory: Path,
    *,
    base_ref: str,
    dropout: float = 0.0,
    sites: Mapping[str, Site] | None = None,
    base_config: PretrainedConfig | None = None,
) -> None:
    """Write the adapter so that mlx-lm loads it as the same function; same adapter, same bytes.

    The scale is that of most sites and the rank is the largest. Other scales are multiplied into
    B, which rounds; smaller ranks are padded with zeros, which does not. mlx-lm puts adapters on
    the last `num_layers` layers: places there that this adapter does not have get no tensors, and
    keep the B of zeros that mlx-lm gives them. Without `sites`, all adaptable sites of the base,
    that is all layers. `base_config` is needed where names depend on the architecture. An earlier
    adapter in `directory` is replaced.
    """
    refuse_to_overwrite(directory, (CONFIG, TENSORS))
    layout = adapter.layout
    scale = mlx_tensors.common_scale(layout)
    rank = max(slot.rank for slot in layout.slots)
    names = {slot.site.name: to_mlx(slot.site.name, base_config) for slot in layout.slots}
    tensors = mlx_tensors.disassemble(adapter, scale, rank, names.__getitem__)
    keys, num_layers = _placement(names, sites)
    config = {
        "fine_tune_type": "lora",
        "lora_parameters": {"dropout": dropout, "keys": keys, "rank": rank, "scale": scale},
        "model": base_ref,
        "num_layers": num_layers,
    }
    with atomic_dir(directory) as temporary:
        write_atomic(temporary / TENSORS, save(tensors, metadata={"format": "mlx"}))
        write_json(temporary / CONFIG, config)


def _placement(names: Mapping[str, str], sites: Mapping[str, Site] | None) -> tuple[list[str], int]:
    """mlx-lm's `keys` and `num_layers` that cover all of these names (site -> mlx-lm's name).

    A key is a name within a block, or a whole name for a place outside the blocks.
    """
    places = {site: m for site, name in names.items() if (m := _BLOCK.fullmatch(name))}
    blocks = Counter(m["list"] for m in places.values()).most_common(1)
    inside = {site: m for site, m in places.items() if m["list"] == blocks[0][0]}
    keys = {inside[site]["key"] if site in inside else name for site, name in names.items()}
    if sites is None or not inside:
        return sorted(keys), _ALL_LAYERS
    own = {_block_list(site) for site in inside}
    last = max(sites[site].layer or 0 for site in sites if _block_list(site) in own)
    return sorted(keys), last + 1 - min(int(m["layer"]) for m in inside.values())


def _block_list(site: str) -> str | None:
    """What the list of blocks that a site is in is called: `model.layers.`."""
    match = _BLOCK.fullmatch(site)
    return match["list"] if match else None
