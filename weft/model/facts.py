"""What a base is, without its weights: its sites and its context.

Llama and its kin say it in config.json, and are understood without PyTorch and transformers as long
as every entry there is one that this module knows. Any other base is built by transformers, without
weights. Both ways give the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from weft.data.tokenizer import resolve_base
from weft.model.adapter import Site
from weft.model.config import DType


@dataclass(frozen=True)
class Facts:
    """Of a base: every place that can carry an adapter, and the longest text it was built for."""

    sites: dict[str, Site]
    context: int


def skeleton(ref: str) -> dict[str, Site]:
    """The sites of a base, from its configuration alone: no weights are read."""
    facts = declared(ref)
    if facts is not None:
        return facts.sites
    from weft.model.base import built_sites

    return built_sites(ref)


def context_of(ref: str) -> int | None:
    """The longest sequence that a base was built for, from its configuration alone."""
    facts = declared(ref)
    if facts is not None:
        return facts.context
    from weft.model.base import load_config, longest_text

    return longest_text(load_config(ref))


def declared(ref: str) -> Facts | None:
    """What config.json says; None where transformers must be asked, or must say what is wrong."""
    try:
        text = (Path(resolve_base(ref)) / "config.json").read_text(encoding="utf-8")
        config = _Llama.model_validate_json(text)
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    if not config.consistent:
        return None
    return Facts({site.name: site for site in config.sites()}, config.max_position_embeddings)


class _Rope(BaseModel):
    """How positions turn: no kind that depends on the length of the text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    rope_type: Literal["default"]
    rope_theta: PositiveFloat | None = None


class _Llama(BaseModel):
    """The config.json of a Llama or its kin, entry by entry; what has no default must stand there.

    The last block changes neither sites nor context.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    model_type: Literal["llama", "mistral", "qwen2", "qwen3"]
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt | None = None
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None
    pad_token_id: int | None = None
    hidden_act: Literal["silu"]

    rope_parameters: _Rope | None = None
    rope_scaling: None = None
    rope_theta: PositiveFloat | None = None
    rms_norm_eps: PositiveFloat = 1e-6
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    sliding_window: PositiveInt | None = None
    use_sliding_window: bool = False
    max_window_layers: int = 0
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    pretraining_tp: int = 1
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    architectures: list[str] | None = None
    torch_dtype: DType | None = None
    dtype: DType | None = None
    transformers_version: str = ""

    @property
    def consistent(self) -> bool:
        """Whether the entries go together."""
        heads, layers = self.num_attention_heads, self.num_hidden_layers
        return (
            self.hidden_size % heads == 0
            and heads % self.num_key_value_heads == 0
            and (self.head_dim is not None or self.model_type != "qwen3")  # has a default there
            and (self.layer_types is None or len(self.layer_types) == layers)
            and -1 <= (self.pad_token_id or 0) < self.vocab_size
        )

    def sites(self) -> Iterator[Site]:
        """The linear layers, in model order."""
        hidden, wide = self.hidden_size, self.intermediate_size
        head = self.head_dim or hidden // self.num_attention_heads
        queries, keys = self.num_attention_heads * head, self.num_key_value_heads * head
        shapes = {
            "self_attn.q_proj": (hidden, queries),
            "self_attn.k_proj": (hidden, keys),
            "self_attn.v_proj": (hidden, keys),
            "self_attn.o_proj": (queries, hidden),
            "mlp.gate_proj": (hidden, wide),
            "mlp.up_proj": (hidden, wide),
            "mlp.down_proj": (wide, hidden),
        }
        for layer in range(self.num_hidden_layers):
            for name, (inputs, outputs) in shapes.items():
                yield Site(f"model.layers.{layer}.{name}", "linear", inputs, outputs, layer)
