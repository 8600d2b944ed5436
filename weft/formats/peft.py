"""Adapters in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`.

The tensors decide what is adapted and the configuration decides the scales; anything that a plain
W + scale * B @ A cannot express is refused by name, never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import PretrainedConfig

from weft.core.errors import InputError
from weft.core.files import atomic_dir, read_json, write_atomic, write_json
from weft.formats import peft_config
from weft.formats.folder import (
    CONFIG,
    USUAL,
    find_tensors,
    refuse_to_overwrite,
    require_tensors,
)
from weft.formats.loaded import GIVEN, LoadedAdapter
from weft.formats.peft_config import PeftConfig
from weft.formats.peft_names import by_site
from weft.formats.problems import not_finite
from weft.formats.tensors import read_safetensors
from weft.model.adapter import Adapter, Layout, Site, Slot

TENSORS = USUAL["peft"]
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."


def is_adapter(path: Path) -> bool:
    """Whether `path`, a directory or a tensor file, holds a PEFT adapter, or a pickle of one."""
    return find_tensors(path, "peft", TENSORS) is not None or _is_pickle(path)


def write_adapter(
    adapter: Adapter,
    directory: Path,
    *,
    base_ref: str,
    dropout: float = 0.0,
    sites: Mapping[str, Site] | None = None,
    base_config: PretrainedConfig | None = None,
) -> None:
    """Write the adapter so that PEFT loads it as the same function; the same adapter, same bytes.

    `base_ref` is what PEFT loads the base by. `dropout` is kept for whoever trains on; PEFT allows
    none on routers. With `sites`, all adaptable sites of the base, `target_modules` is shortened to
    leaf names where that is exact. `base_config` is for formats that need it; PEFT's does not. An
    earlier adapter in `directory` is replaced.
    """
    refuse_to_overwrite(directory, (CONFIG, TENSORS))
    tensors = {
        f"{_PREFIX}{name}.lora_{factor}.weight": tensor.detach().to("cpu", torch.float32)
        for name, pair in adapter.sites.items()
        for factor, tensor in zip("AB", pair, strict=True)
    }
    with atomic_dir(directory) as temporary:
        write_atomic(temporary / TENSORS, save(tensors, metadata={"format": "pt"}))
        config = peft_config.config_of(adapter.layout, base_ref, dropout, sites)
        write_json(temporary / CONFIG, config)


def read_adapter(
    path: Path,
    sites: Mapping[str, Site] | None = None,
    *,
    scale: float | None = None,
    base_config: PretrainedConfig | None = None,
) -> LoadedAdapter:
    """Read an adapter that PEFT, or `write_adapter`, wrote: a directory, or its tensor file.

    `sites` are all adaptable sites of the base: tensors that do not fit them are one `InputError`,
    and the slots come in their order. Without `sites`, kinds and shapes are taken from the files.
    `scale` goes before alpha and r, everywhere. `base_config` is for formats that need it.
    """
    file = _require_tensors(path)
    if not (file.parent / CONFIG).exists():
        raise InputError(
            f"{file} has no {CONFIG} beside it, which says its rank, its alpha and its base",
            hint="copy it to that place, too: an adapter of PEFT is two files",
        )
    fields = read_json(file.parent / CONFIG)
    config = peft_config.parse(fields, file.parent / CONFIG)
    factors = by_site(path, read_safetensors(file), config, sites)
    found = _infer_sites(factors, config) if sites is None else sites
    own = {name: config.scale(name) for name in found if name in factors}
    scales = own if scale is None else dict.fromkeys(own, scale)
    slots = tuple(Slot(found[name], config.rank(name), scales[name]) for name in scales)
    parts = [factors[slot.site.name][f].float().flatten() for slot in slots for f in "AB"]
    named = {f"{name}.lora_{f}": t for name, pair in factors.items() for f, t in pair.items()}
    return LoadedAdapter(
        adapter=Adapter(Layout(slots), torch.cat(parts)),
        config=fields,
        base_ref=config.base_model_name_or_path or None,
        notes=(*_contradiction(own, scale, config.rule), *not_finite(named)),
        format="peft",
        scale_from=config.rule if scale is None else GIVEN,
    )


def _is_pickle(path: Path) -> bool:
    return (path / _PICKLE).is_file() and not any(path.glob("*.safetensors"))


def _require_tensors(path: Path) -> Path:
    if _is_pickle(path):
        raise InputError(
            f"{path} holds {_PICKLE}, a pickle file, and no {TENSORS}",
            hint="Weft opens no pickles; if you trust it, convert it with"
            f" `safetensors.torch.save_file(torch.load({_PICKLE!r}, weights_only=True),"
            f" {TENSORS!r})`",
        )
    return require_tensors(path, "peft", TENSORS, "a PEFT adapter")


def _contradiction(own: Mapping[str, float], given: float | None, rule: str) -> tuple[str, ...]:
    """A note on a scale that was given where the files say another one."""
    said = sorted(set(own.values()))
    if given is None or said == [given]:
        return ()
    told = f"{said[0]:g}" if len(said) == 1 else f"{said[0]:g} to {said[-1]:g}"
    return (f"the scale {given:g} was given and is used; the files mean {told} ({rule})",)


def _infer_sites(
    factors: Mapping[str, Mapping[str, torch.Tensor]], config: PeftConfig
) -> dict[str, Site]:
    """Sites by the shapes of their tensors, when the base is not known."""
    sites = {}
    for name, pair in factors.items():
        kind = "conv1d" if config.fan_in_fan_out else "linear"
        kind = "router" if config.adapts_parameter(name) else kind
        inputs, outputs = pair["A"].shape[1], pair["B"].shape[0]
        sites[name] = Site(name, kind, inputs, outputs, peft_config.layer_index(name))
    return sites
