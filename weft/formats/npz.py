"""Adapters of the LoRA scripts of mlx-examples: one file `adapters.npz`, factors and nothing else.

The scripts multiply B @ A by a constant, 20 since 2024-01-09 and 2 before, so a file does not say
its scale, its base or its rank; and they know adapters in three places only.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from weft.core.files import atomic_dir, write_atomic
from weft.formats import mlx_places, mlx_scale, mlx_tensors
from weft.formats.folder import USUAL, find_tensors, refuse_to_overwrite, require_tensors
from weft.formats.loaded import LoadedAdapter
from weft.formats.mlx_names import to_mlx
from weft.formats.problems import fit_words, not_finite, refuse
from weft.formats.tensors import read_npz
from weft.model.adapter import Adapter, Site

TENSORS = USUAL["npz"]
SCALE = mlx_scale.EXAMPLES_SCALE
"""What the scripts multiply B @ A by, and what `write` writes for."""

_PLACES = ("self_attn.q_proj", "self_attn.v_proj", "block_sparse_moe.gate")


def detect(path: Path) -> bool:
    """Whether `path`, a directory or a file, holds an adapter in the scripts' layout."""
    return find_tensors(path, "npz", TENSORS) is not None


def read(
    path: Path,
    sites: Mapping[str, Site] | None = None,
    *,
    scale: float | None = None,
    base_config: PretrainedConfig | None = None,
) -> LoadedAdapter:
    """Read `adapters.npz`, without pickles: a directory that holds it, or the file.

    The file never determines its scale: without `scale` this is an `UndecidedScale`. Factors in
    Meta's naming, of before 2024-01-09, are renamed, and the rows of B of q and k are put into
    transformers' rotary order, for which `base_config` is needed. `sites` as for the other formats.
    """
    file = require_tensors(path, "npz", TENSORS, "an adapter of mlx-examples")
    found = mlx_places.sort_out(read_npz(file), sites)
    refuse(
        f"the adapter {path} is more than W + scale * B @ A",
        found.foreign,
        hint="fuse it into its base with the script that trained it, and use that as the base",
    )
    refuse(
        f"the adapter {path}{fit_words(None, knows_base=sites is not None)}",
        mlx_places.problems_of(found, sites, None),
        hint="load it on the base model that it was trained on" if sites is not None else None,
    )
    candidates = mlx_scale.without_config(npz=True, meta=bool(found.meta))
    decided = mlx_scale.decide(f"the adapter {path}", candidates, False, given=scale)
    converted = f"from Meta's naming: {len(found.meta)} places" if found.meta else None
    return LoadedAdapter(
        adapter=mlx_tensors.assemble(found, sites, decided.scale, base_config),
        config={},
        base_ref=None,
        notes=(
            *decided.notes,
            *([converted] if converted else []),
            *not_finite(found.named()),
        ),
        format="npz",
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
    """Write `adapters.npz` for the scripts' constant scale of 20; the same adapter, same bytes.

    B is multiplied by scale / 20, which rounds. The file has no place for `base_ref` and
    `dropout`. The scripts adapt q_proj, v_proj and block_sparse_moe.gate of the last
    `--lora-layers` layers, and pass over any other tensor without a word: an adapter that has
    one is an `InputError`. An earlier adapter in `directory` is replaced.
    """
    refuse_to_overwrite(directory, (TENSORS,))
    names = {s.site.name: to_mlx(s.site.name, base_config) for s in adapter.layout.slots}
    refuse(
        "the scripts of mlx-examples know adapters on "
        f"{', '.join(_PLACES)} of `model.layers`, and this one has others too",
        [
            name
            for name in names.values()
            if not (name.startswith("model.layers.") and name.endswith(_PLACES))
        ],
        hint="write it for mlx-lm (`mlx`), which knows every place",
    )
    tensors = mlx_tensors.disassemble(adapter, SCALE, None, names.__getitem__)
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    np.savez(buffer, **arrays)
    with atomic_dir(directory) as temporary:
        write_atomic(temporary / TENSORS, buffer.getvalue())
