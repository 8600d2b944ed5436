"""Adapters in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`.

The tensors decide what is adapted and the configuration decides the scales; anything that a plain
W + scale * B @ A cannot express is refused by name, never dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import PretrainedConfig

from weft.core.errors import InputError
from weft.core.files import atomic_dir, read_json, write_atomic, write_json
from weft.formats import peft_config
from weft.formats.folder import (
    CONFIG,
    find_tensors,
    read_safetensors,
    refuse_to_overwrite,
    require_tensors,
)
from weft.formats.loaded import GIVEN, LoadedAdapter
from weft.formats.peft_config import PeftConfig
from weft.formats.problems import fit_words, misfits, natural, not_finite, refuse, strangers
from weft.model.adapter import Adapter, Layout, Site, Slot
from weft.model.sites import ALIASES

TENSORS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?:base_model\.model\.)?(?P<site>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight"
)
_EXPERTS = re.compile(r"\.experts(\.base_layer)*$")  # one parameter for all of them

Factors = dict[str, torch.Tensor]  # "A" and "B" of one site


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
    factors, foreign = _by_site(read_safetensors(file))
    refuse(
        f"the adapter {path} is more than W + scale * B @ A",
        peft_config.beyond_lora(config) + foreign,
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
    found = _infer_sites(factors, config) if sites is None else sites
    own = {name: config.scale(name) for name in found if name in factors}
    scales = own if scale is None else dict.fromkeys(own, scale)
    slots = tuple(Slot(found[name], config.rank(name), scales[name]) for name in scales)
    parts = [factors[slot.site.name][f].float().flatten() for slot in slots for f in "AB"]
    rule = "alpha / sqrt(r) (rsLoRA)" if config.use_rslora else "alpha / r"
    named = {f"{name}.lora_{f}": t for name, pair in factors.items() for f, t in pair.items()}
    return LoadedAdapter(
        adapter=Adapter(Layout(slots), torch.cat(parts)),
        config=fields,
        base_ref=trained_on or None,
        notes=(*_contradiction(own, scale, rule), *not_finite(named)),
        format="peft",
        scale_from=rule if scale is None else GIVEN,
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


def _by_site(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, Factors], list[str]]:
    """The factors of each site in natural order of names, and what is not a factor of LoRA."""
    factors: dict[str, Factors] = {}
    foreign = []
    for name in sorted(tensors, key=natural):
        match = _FACTOR.fullmatch(name)
        if match is None:
            foreign.append(f"tensor `{name}` {_meaning(name)}")
        elif _EXPERTS.search(match["site"]):
            foreign.append(f"tensor `{name}` adapts the experts of a mixture")
        elif not tensors[name].is_floating_point():
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
    name: str, pair: Factors, config: PeftConfig, sites: Mapping[str, Site] | None
) -> Iterator[str]:
    """Factors of one site that are missing, or of another shape than the base or the rank asks."""
    rank = config.rank(name)
    site = (sites or {}).get(name)
    inputs, outputs = (site.inputs, site.outputs) if site else (None, None)
    found = {f"lora_{factor}": tensor for factor, tensor in pair.items()}
    return misfits(name, found, {"lora_A": (rank, inputs), "lora_B": (outputs, rank)})


def _infer_sites(factors: Mapping[str, Factors], config: PeftConfig) -> dict[str, Site]:
    """Sites by the shapes of their tensors, when the base is not known."""
    sites = {}
    for name, pair in factors.items():
        kind = "conv1d" if config.fan_in_fan_out else "linear"
        kind = "router" if config.adapts_parameter(name) else kind
        inputs, outputs = pair["A"].shape[1], pair["B"].shape[0]
        sites[name] = Site(name, kind, inputs, outputs, peft_config.layer_index(name))
    return sites
