"""PEFT's `adapter_config.json`: the scale of each site, and the fields that are more than LoRA.

The rules are those of peft 0.21: `tuners/lora/layer.py` (scale), `utils/other.py` (patterns),
`tuners/tuners_utils.py` (which modules a target names).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveInt, field_validator

from weft.formats.problems import parsed

if TYPE_CHECKING:
    from weft.model.adapter import Layout, Site, Slot

_INERT = {
    # training, initialisation of A and B alone, and the backward pass
    "lora_dropout", "inference_mode", "eva_config", "velora_config", "runtime_config",
    # where modules were looked for: the tensors say where they were found
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    # provenance, and settings of features that are refused when they are on
    "peft_version", "auto_mapping", "revision", "task_type", "megatron_core", "loftq_config",
    "corda_config", "lora_ga_config", "qalora_group_size",
}  # fmt: skip

_PLAIN_VALUES: dict[str, set[bool | str]] = {
    "bias": {"none"},
    "init_lora_weights": {True, False, "gaussian", "eva", "orthogonal", "mica"},
}
"""Values with which the function is still W + scale * B @ A. Of every other field: empty ones."""

_BASE_EDITING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


class PeftConfig(BaseModel):
    """The fields that decide the scale of a site. PEFT's other fields are in `model_extra`."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    peft_type: Literal["LORA"]
    r: PositiveInt
    lora_alpha: FiniteFloat
    use_rslora: bool = False
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None
    fan_in_fan_out: bool = False
    target_parameters: list[str] | None = None
    base_model_name_or_path: str | None = None

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns_compile(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        for pattern in value or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"`{pattern}` is not a regular expression: {error}") from None
        return value

    def rank(self, site: str) -> int:
        """The rank at a site."""
        return self._patterned(self.rank_pattern or {}, site, self.r)

    def scale(self, site: str) -> float:
        """alpha / r, or alpha / sqrt(r) with rsLoRA; a patterned rank keeps the global alpha."""
        rank = self.rank(site)
        return self.alpha(site) / (math.sqrt(rank) if self.use_rslora else rank)

    def alpha(self, site: str) -> float:
        """The alpha at a site."""
        return float(self._patterned(self.alpha_pattern or {}, site, self.lora_alpha))

    @property
    def rule(self) -> str:
        """How alpha makes the scale, in words."""
        return "alpha / sqrt(r) (rsLoRA)" if self.use_rslora else "alpha / r"

    def adapts_parameter(self, site: str) -> bool:
        """Whether PEFT adapts a bare parameter there (a router) and not a module."""
        return any(f".{site}.weight".endswith(f".{t}") for t in self.target_parameters or ())

    def _patterned(self, patterns: Mapping[str, Any], site: str, default: Any) -> Any:
        """The value of the first pattern that matches the whole name or a dotted end of it."""
        name = f"{site}.weight" if self.adapts_parameter(site) else site
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        return default


def parse(fields: Any, source: Path) -> PeftConfig:
    """The configuration; what PEFT could not have written is an `InputError`."""
    return parsed(PeftConfig, fields, f"{source} is not PEFT's LoRA configuration")


def beyond_lora(config: PeftConfig) -> list[str]:
    """The fields with which the adapter is more than W + scale * B @ A, or might be."""
    problems = []
    for name, value in sorted((config.model_extra or {}).items()):
        if name in _INERT or value in (None, False, [], {}):
            continue
        if isinstance(value, bool | str) and value in _PLAIN_VALUES.get(name, ()):
            continue
        problem = f"`{name}` is {value!r}"
        if name == "init_lora_weights" and str(value).startswith(_BASE_EDITING_INITS):
            problem += (
                ", which changes the base weights; PEFT saves an ordinary adapter when"
                " `save_pretrained` is given `path_initial_model_for_weight_conversion`"
            )
        problems.append(problem)
    return problems


def config_of(
    layout: Layout, base_ref: str, dropout: float, sites: Mapping[str, Site] | None
) -> dict[str, Any]:
    """The configuration with which PEFT puts exactly this layout, at these scales, on the base.

    Every scale is written as alpha = scale * rank, so a reader that knows only alpha / r agrees.
    """
    routers = [slot for slot in layout.slots if slot.site.kind == "router"]
    modules = [slot for slot in layout.slots if slot.site.kind != "router"]
    # PEFT honours the patterns of parameters, but warns that they match no module: routers get
    # the global values where there is a choice.
    rank = _most_common(slot.rank for slot in routers or modules)
    alpha = _most_common(_alpha(slot) for slot in routers or modules)
    targets, layers = _targets([slot.site.name for slot in modules], sites or {})
    config = {
        "alpha_pattern": {
            _only(slot): _alpha(slot) for slot in layout.slots if _alpha(slot) != alpha
        },
        "base_model_name_or_path": base_ref,
        "bias": "none",
        "fan_in_fan_out": any(slot.site.kind == "conv1d" for slot in modules),
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_to_transform": layers,
        "lora_alpha": alpha,
        "lora_dropout": 0.0 if routers else dropout,  # PEFT refuses dropout on parameters
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {_only(slot): slot.rank for slot in layout.slots if slot.rank != rank},
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    if routers:
        config["target_parameters"] = [f"{slot.site.name}.weight" for slot in routers]
    return config


def layer_index(site: str) -> int | None:
    """The layer that a site belongs to, as PEFT counts: the first number below a container."""
    match = re.match(r".*?\.[^.]*\.(\d+)\.", site)
    return int(match[1]) if match else None


def _alpha(slot: Slot) -> int | float:
    """An alpha with alpha / rank == scale, a whole number where one does it.

    A few scales lie between the quotients of neighbouring floats: there the last bit differs.
    """
    product = slot.scale * slot.rank
    near = (
        float(round(product)),
        product,
        math.nextafter(product, math.inf),
        math.nextafter(product, -math.inf),
    )
    alpha = next((a for a in near if a / slot.rank == slot.scale), product)
    return int(alpha) if alpha.is_integer() else alpha


def _only(slot: Slot) -> str:
    """A pattern that matches this site and no other."""
    name = slot.site.name + (".weight" if slot.site.kind == "router" else "")
    return "^" + re.escape(name)


def _targets(names: list[str], sites: Collection[str]) -> tuple[list[str], list[int] | None]:
    """`target_modules` and `layers_to_transform` that select exactly `names`.

    Leaf names (`q_proj`), where these select nothing else among the sites of the base; otherwise,
    or when the sites are not known, full names.
    """
    leaves = sorted({name.rpartition(".")[2] for name in names})
    layers = sorted({layer for name in names if (layer := layer_index(name)) is not None})
    for limit in (None, layers):
        if {site for site in sites if _selects(leaves, limit, site)} == set(names):
            return leaves, limit
    return sorted(names), None


def _selects(targets: Collection[str], layers: Collection[int] | None, site: str) -> bool:
    if site in targets:
        return True
    ends = any(site.endswith(f".{target}") for target in targets)
    return ends and (layers is None or layer_index(site) in layers)


def _most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]
