"""Adapters in PEFT's format: `adapter_model.safetensors` and `adapter_config.json`.

The tensors decide what is adapted and the configuration decides the scales; anything that a plain
W + scale * B @ A cannot express is refused by name, never dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from weft.core.errors import InputError, did_you_mean
from weft.core.files import atomic_dir, read_json, write_atomic, write_json
from weft.formats import peft_config
from weft.formats.loaded import LoadedAdapter
from weft.formats.peft_config import PeftConfig
from weft.model.adapter import Adapter, Layout, Site, Slot
from weft.model.sites import ALIASES

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?:base_model\.model\.)?(?P<site>.+)\.lora_(?P<factor>[AB])(?:\.default)?\.weight"
)
_SHOWN = 12  # problems that an error lists before it counts the rest

Factors = dict[str, torch.Tensor]  # "A" and "B" of one site


def is_adapter(directory: Path) -> bool:
    """Whether this looks like a PEFT adapter: told by file names, which other formats lack."""
    return any((directory / name).is_file() for name in (TENSORS, _PICKLE))


def write_adapter(
    adapter: Adapter,
    directory: Path,
    *,
    base_ref: str,
    dropout: float = 0.0,
    sites: Mapping[str, Site] | None = None,
) -> None:
    """Write the adapter so that PEFT loads it as the same function; the same adapter, same bytes.

    `base_ref` is what PEFT loads the base by. `dropout` is kept for whoever trains on; PEFT allows
    none on routers. With `sites`, all adaptable sites of the base, `target_modules` is shortened to
    leaf names where that is exact. An earlier adapter in `directory` is replaced.
    """
    _refuse_to_overwrite_others(directory)
    tensors = {
        f"{_PREFIX}{name}.lora_{factor}.weight": tensor.detach().to("cpu", torch.float32)
        for name, pair in adapter.sites.items()
        for factor, tensor in zip("AB", pair, strict=True)
    }
    with atomic_dir(directory) as temporary:
        write_atomic(temporary / TENSORS, save(tensors, metadata={"format": "pt"}))
        config = peft_config.config_of(adapter.layout, base_ref, dropout, sites)
        write_json(temporary / CONFIG, config)


def read_adapter(directory: Path, sites: Mapping[str, Site] | None = None) -> LoadedAdapter:
    """Read an adapter that PEFT, or `write_adapter`, wrote.

    `sites` are all adaptable sites of the base: tensors that do not fit them are one `InputError`,
    and the slots come in their order. Without `sites`, kinds and shapes are taken from the files.
    """
    _require_files(directory)
    fields = read_json(directory / CONFIG)
    config = peft_config.parse(fields, directory / CONFIG)
    factors, foreign = _by_site(_read_tensors(directory / TENSORS))
    _refuse(
        f"the adapter {directory} is more than W + scale * B @ A",
        peft_config.beyond_lora(config) + foreign,
        hint="merge it into its base with PEFT (`merge_and_unload`) and use that as the base",
    )
    trained_on = config.base_model_name_or_path
    _refuse(
        f"the adapter {directory}"
        + (f", trained on {trained_on}," if trained_on else "")
        + (" does not fit the base" if sites is not None else " does not fit together"),
        [
            *_unexpected(factors, sites),
            *(p for name in factors for p in _misfits(name, factors[name], config, sites)),
        ],
        hint="load it on the base model that it was trained on" if sites is not None else None,
    )
    found = _infer_sites(factors, config) if sites is None else sites
    slots = tuple(
        Slot(site, config.rank(name), config.scale(name))
        for name, site in found.items()
        if name in factors
    )
    parts = [factors[slot.site.name][f].float().flatten() for slot in slots for f in "AB"]
    return LoadedAdapter(
        adapter=Adapter(Layout(slots), torch.cat(parts)),
        config=fields,
        base_ref=trained_on or None,
        notes=_notes(factors),
        format="peft",
        scale_from="alpha / sqrt(r) (rsLoRA)" if config.use_rslora else "alpha / r",
    )


def _require_files(directory: Path) -> None:
    if not directory.is_dir():
        raise InputError(f"there is no directory {directory}")
    if (directory / TENSORS).is_file():
        return
    if (directory / _PICKLE).is_file():
        raise InputError(
            f"{directory} holds {_PICKLE}, a pickle file, and no {TENSORS}",
            hint="Weft opens no pickles; if you trust it, convert it with"
            f" `safetensors.torch.save_file(torch.load({_PICKLE!r}, weights_only=True),"
            f" {TENSORS!r})`",
        )
    below = sorted(entry.parent for entry in directory.glob(f"*/{TENSORS}"))
    raise InputError(
        f"{directory} is not a PEFT adapter: it has no {TENSORS}",
        hint=f"did you mean {below[0]}?" if below else None,
    )


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"cannot read {path} as a safetensors file: {error}",
            hint="it may have been cut short by a download or a copy; fetch it again",
        ) from None
    if not tensors:
        raise InputError(f"{path} holds no tensors")
    return tensors


def _by_site(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, Factors], list[str]]:
    """The factors of each site in natural order of names, and what is not a factor of LoRA."""
    factors: dict[str, Factors] = {}
    foreign = []
    for name in sorted(tensors, key=_natural):
        match = _FACTOR.fullmatch(name)
        if match is None:
            foreign.append(f"tensor `{name}` {_meaning(name)}")
        elif not tensors[name].is_floating_point():
            foreign.append(f"tensor `{name}` is {tensors[name].dtype}")
        else:
            factors.setdefault(_today(match["site"]), {})[match["factor"]] = tensors[name]
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


def _unexpected(names: Iterable[str], sites: Mapping[str, Site] | None) -> Iterator[str]:
    """Names that the base does not have, with the nearest that it has."""
    strangers = [name for name in names if sites is not None and name not in sites]
    for index, name in enumerate(strangers):
        near = did_you_mean(name, list(sites or ())) if index < _SHOWN else None  # it is slow
        yield f"{name}: not a place that can be adapted" + (f"; {near}" if near else "")


def _misfits(
    name: str, pair: Factors, config: PeftConfig, sites: Mapping[str, Site] | None
) -> Iterator[str]:
    """Factors of one site that are missing or of another shape than the base or the rank asks."""
    rank = config.rank(name)
    site = (sites or {}).get(name)
    inputs, outputs = (site.inputs, site.outputs) if site else (None, None)
    for factor, wanted in (("A", (rank, inputs)), ("B", (outputs, rank))):
        if factor not in pair:
            yield f"{name}: lora_{factor} is missing"
            continue
        shape = tuple(pair[factor].shape)
        if len(shape) != 2 or any(w not in (None, s) for s, w in zip(shape, wanted, strict=True)):
            words = ", ".join("any" if size is None else str(size) for size in wanted)
            yield f"{name}: lora_{factor} is {list(shape)}, expected [{words}]"


def _infer_sites(factors: Mapping[str, Factors], config: PeftConfig) -> dict[str, Site]:
    """Sites by the shapes of their tensors, when the base is not known."""
    sites = {}
    for name, pair in factors.items():
        kind = "conv1d" if config.fan_in_fan_out else "linear"
        kind = "router" if config.adapts_parameter(name) else kind
        inputs, outputs = pair["A"].shape[1], pair["B"].shape[0]
        sites[name] = Site(name, kind, inputs, outputs, peft_config.layer_index(name))
    return sites


def _notes(factors: Mapping[str, Factors]) -> tuple[str, ...]:
    broken = [
        f"{name}.lora_{factor}"
        for name, pair in factors.items()
        for factor, tensor in pair.items()
        if not tensor.isfinite().all()
    ]
    return (f"not finite: {_shortened(broken, ', ')}",) if broken else ()


def _refuse(what: str, problems: Sequence[str], hint: str | None) -> None:
    if problems:
        raise InputError(f"{what}:\n  {_shortened(problems, chr(10) + '  ')}", hint)


def _shortened(items: Sequence[str], separator: str) -> str:
    more = [f"and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return separator.join([*items[:_SHOWN], *more])


def _refuse_to_overwrite_others(directory: Path) -> None:
    """An adapter directory is replaced whole: nothing but an adapter may be in it."""
    if directory.is_file():
        raise InputError(f"{directory} is a file; an adapter is a directory")
    if directory.exists():
        others = {entry.name for entry in directory.iterdir()} - {CONFIG, TENSORS}
        if others:
            raise InputError(
                f"{directory} holds other files too: {_shortened(sorted(others), ', ')}",
                hint="choose a new or an empty directory for the adapter",
            )


def _natural(name: str) -> list[str | int]:
    """Sort key that puts layer 2 before layer 10."""
    return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]
