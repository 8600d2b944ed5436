"""What mlx-lm, and the scripts before it, call a place in the model.

Weft's names are transformers' module paths. mlx-lm keeps most of them; where it does not, the
difference goes with the `model_type` of the base.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from weft.core.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_ROUTER = "block_sparse_moe.gate"
_TEXT = (r"^model\.language_model\.", "language_model.model.")
_RENAMED = {
    "gpt2": (r"^transformer\.h\.", "model.h."),
    "gptj": (r"^transformer\.h\.", "model.h."),
    "gpt_neox": (r"^gpt_neox\.layers\.", "model.h."),
    "mixtral": (r"\bmlp\.gate$", _ROUTER),
    "phimoe": (r"\bmlp\.router$", _ROUTER),
    "granitemoe": (r"\bblock_sparse_moe\.router$", "block_sparse_moe.router.layer"),
    "gemma3": _TEXT,
    "gemma4": _TEXT,
}
"""By model type: a pattern in transformers' name, and what mlx-lm has in its place."""

_INNER = (r"^model\.", "language_model.model.")
_TEXT_OF_MORE = {"qwen3_5_text": _INNER, "qwen3_5_moe_text": _INNER}
"""The same for models that transformers takes out of a larger one, and mlx-lm leaves there."""

_KEPT = {
    r"^transformer\.h\.": "gpt_bigcode",
    r"\bmlp\.gate$": "olmoe",
    r"\bmlp\.router$": "gpt_oss",
}
"""Patterns of `_RENAMED` that occur in another architecture whose names mlx-lm keeps."""

_META = re.compile(r"(?:model\.)?layers\.(\d+)\.(attention|feed_forward)\.(w[qkvo123])")
_META_LEAVES = {
    "wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj",
    "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj",
}  # fmt: skip
_META_BLOCKS = {"attention": "self_attn", "feed_forward": "mlp"}


def to_mlx(site: str, base_config: PretrainedConfig | None) -> str:
    """mlx-lm's name of a site.

    Without `base_config`, a name that tells too little of its architecture is an `InputError`;
    `model.layers.*` is what it is everywhere but in Qwen 3.5.
    """
    if base_config is not None:
        rule = (_RENAMED | _TEXT_OF_MORE).get(base_config.model_type)
        return re.sub(*rule, site) if rule else site
    names = {re.sub(*rule, site) for rule in _RENAMED.values()} - {site}
    if any(re.search(pattern, site) for pattern in _KEPT):
        names.add(site)
    if len(names) > 1:
        raise InputError(
            f"what mlx-lm calls {site} depends on the architecture: {' or '.join(sorted(names))}",
            hint="say which base the adapter is for",
        )
    return names.pop() if names else site


def sites_by_mlx_name(sites: Iterable[str]) -> dict[str, str]:
    """Every name that mlx-lm may have for one of these sites, and the site."""
    sites = list(sites)
    rules = (_RENAMED | _TEXT_OF_MORE).values()
    renamed = {re.sub(*rule, site): site for rule in rules for site in sites}
    return renamed | {site: site for site in sites}


def from_mlx(name: str) -> tuple[str, str]:
    """The site that mlx-lm's `name` most likely is, and its kind, when the base is not known."""
    if name.endswith(f".{_ROUTER}"):
        return name.removesuffix(_ROUTER) + "mlp.gate", "router"
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.", 1), "linear"
    if not name.startswith("model.h."):
        return name, "linear"
    block = name.removeprefix("model.h.")
    if ".attention." in block or ".dense_" in block:
        return f"gpt_neox.layers.{block}", "linear"
    is_gpt2 = re.search(r"\.c_(attn|proj|fc)$", block)
    return f"transformer.h.{block}", "conv1d" if is_gpt2 else "linear"


def from_meta(name: str) -> tuple[str, bool] | None:
    """The name today of a place in Meta's naming, which mlx-examples used until 2024-01-09.

    With it, whether the rows of its B are in Meta's rotary order. None for any other name.
    """
    match = _META.fullmatch(name)
    if match is None:
        return None
    layer, block, leaf = match.groups()
    today = f"model.layers.{layer}.{_META_BLOCKS[block]}.{_META_LEAVES[leaf]}"
    return today, leaf in ("wq", "wk")
