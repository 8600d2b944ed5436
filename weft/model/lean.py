"""One decoding step of a Llama-like model in as few operations as it takes.

A step of one token a row is small: most of its time goes into starting operations, not into
arithmetic. Here layers that read the same input are one product, adapters of such layers are one
low-rank update, and nothing is computed that a step does not need. The weights are the model's
own: its layers become views of the joined ones.

Shapes: B rows (M texts of each of N members, members fastest), D hidden size, H query heads,
G key/value heads, d head size, I inputs and O outputs of a joined layer, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import embedding, linear, rms_norm
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
)

from weft.core.memory import give_back
from weft.model.bank import Bank
from weft.model.cache import KVCache
from weft.model.lowrank import add_product
from weft.model.weaving import Weft

FAMILY = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM)
STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings whose frequencies do not depend on the length of the text."""


@dataclass(frozen=True, eq=False)
class Joined:
    """Linear layers that read the same input, as one."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weight_OI: torch.Tensor
    bias_O: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Layer:
    """One decoder layer."""

    first_norm: Callable[[torch.Tensor], torch.Tensor]
    qkv: Joined
    out: Joined
    second_norm: Callable[[torch.Tensor], torch.Tensor]
    gate_up: Joined
    down: Joined
    window: int | None

    @property
    def joined(self) -> tuple[Joined, ...]:
        """All products."""
        return (self.qkv, self.out, self.gate_up, self.down)


@dataclass(frozen=True, eq=False)
class LeanModel:
    """The parts of a Llama-like model that a step needs."""

    model: PreTrainedModel
    layers: tuple[Layer, ...]
    norm: Callable[[torch.Tensor], torch.Tensor]
    activation: Callable[[torch.Tensor], torch.Tensor]
    kv_heads: int
    head_size: int
    scaling: float

    def rotations(self, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [C, d] of every position; sin is ready for the halves rolled by d / 2."""
        body: Any = self.model.base_model
        place_1C = torch.arange(capacity, device=self.model.device)[None]
        cos_1Cd, sin_1Cd = body.rotary_emb(body.embed_tokens.weight, place_1C)
        sin_Cd = sin_1Cd[0].clone()
        sin_Cd[:, : self.head_size // 2] *= -1
        return cos_1Cd[0], sin_Cd


def lean_model(model: PreTrainedModel) -> LeanModel | None:
    """The lean form of a model, or None for one that is not built like Llama.

    Joins the model's layers in memory: they keep their values and become views.
    """
    if type(model) not in FAMILY or _rope_type(model) not in STATIC_ROPE:
        return None
    body: Any = model.base_model
    names = {module: name for name, module in model.named_modules()}
    first = body.layers[0]
    layers = []
    for layer in body.layers:
        layers.append(_layer(layer, names))
        give_back()  # what has been joined: no peak counts it twice
    return LeanModel(
        model=model,
        layers=tuple(layers),
        norm=_norm(body.norm),
        activation=first.mlp.act_fn,
        kv_heads=first.self_attn.k_proj.out_features // first.self_attn.head_dim,
        head_size=first.self_attn.head_dim,
        scaling=first.self_attn.scaling,
    )


class LeanStep:
    """`step(token_B, cache)`: the last hidden state [B, D] after one more token in every row."""

    def __init__(self, lean: LeanModel, weft: Weft, capacity: int) -> None:
        self.lean = lean
        self.members = len(weft.bank.members)
        bank = weft.bank
        if weft.stacks is not None:
            bank = bank.over(weft.stacks.only([0] * self.members))
        self.cos_Cd, self.sin_Cd = lean.rotations(capacity)
        self.updates = {
            joined: update
            for layer in lean.layers
            for joined in layer.joined
            if (update := _join_updates(joined, bank)) is not None
        }

    def __call__(self, token_B: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Appends to the cache, and leaves its lengths as they are."""
        lean = self.lean
        body: Any = lean.model.base_model
        x_BD = embedding(token_B, body.embed_tokens.weight)
        cos_B1d = self.cos_Cd[cache.lengths_B][:, None]
        sin_B1d = self.sin_Cd[cache.lengths_B][:, None]
        for number, layer in enumerate(lean.layers):
            y_BO = self._product(layer.qkv, layer.first_norm(x_BD))
            heads_Bhd = y_BO.unflatten(1, (-1, lean.head_size))
            qk_Bhd, v_BGd = heads_Bhd.split(
                (heads_Bhd.shape[1] - lean.kv_heads, lean.kv_heads), dim=1
            )
            rolled_Bhd = qk_Bhd.roll(lean.head_size // 2, -1)
            qk_Bhd = (qk_Bhd * cos_B1d).add_(rolled_Bhd.mul_(sin_B1d))
            q_BHd, k_BGd = qk_Bhd.split((qk_Bhd.shape[1] - lean.kv_heads, lean.kv_heads), dim=1)
            a_BHd = cache.attend(number, q_BHd, k_BGd, v_BGd, lean.scaling, layer.window)
            x_BD = x_BD + self._product(layer.out, a_BHd.flatten(1))
            y_BO = self._product(layer.gate_up, layer.second_norm(x_BD))
            gate_BF, up_BF = y_BO.chunk(2, dim=1)
            x_BD = x_BD + self._product(layer.down, lean.activation(gate_BF) * up_BF)
        return lean.norm(x_BD)

    def _product(self, joined: Joined, x_BI: torch.Tensor) -> torch.Tensor:
        y_BO = linear(x_BI, joined.weight_OI, joined.bias_O)
        update = self.updates.get(joined)
        if update is not None:
            a_NIr, b_NrO = update
            grid = (-1, self.members)
            x_NMI = x_BI.unflatten(0, grid).transpose(0, 1).float()
            z_NMr = torch.bmm(x_NMI, a_NIr)
            add_product(y_BO.unflatten(0, grid).transpose(0, 1), z_NMr, b_NrO)
        return y_BO


def _layer(layer: Any, names: Mapping[torch.nn.Module, str]) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    window = getattr(attention, "sliding_window", None)
    if isinstance(attention.config, MistralForCausalLM.config_class):
        window = attention.config.sliding_window
    return Layer(
        first_norm=_norm(layer.input_layernorm),
        qkv=_join([attention.q_proj, attention.k_proj, attention.v_proj], names),
        out=_join([attention.o_proj], names),
        second_norm=_norm(layer.post_attention_layernorm),
        gate_up=_join([mlp.gate_proj, mlp.up_proj], names),
        down=_join([mlp.down_proj], names),
        window=window,
    )


def _join(layers: Sequence[torch.nn.Linear], names: Mapping[torch.nn.Module, str]) -> Joined:
    """Put the weights side by side, inputs first, which small products read fastest."""
    sizes = tuple(layer.out_features for layer in layers)
    weight_IO = torch.cat([layer.weight.data.T for layer in layers], dim=1)
    for layer, part_Io in zip(layers, weight_IO.split(sizes, dim=1), strict=True):
        layer.weight.data = part_Io.T
    biases = [layer.bias for layer in layers]
    bias_O = None
    if any(bias is not None for bias in biases):
        zeros = [weight_IO.new_zeros(size) for size in sizes]
        bias_O = torch.cat([z if b is None else b.data for b, z in zip(biases, zeros, strict=True)])
    return Joined(tuple(names[layer] for layer in layers), sizes, weight_IO.T, bias_O)


def _join_updates(joined: Joined, bank: Bank) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(A [N, I, r], scale * B [N, r, O]) of all updates at the joined layers, exactly.

    Ranks add up: each layer's B writes to that layer's outputs and is zero elsewhere.
    """
    members = len(bank.members)
    parts_a, parts_b = [], []
    start = 0
    for name, size in zip(joined.names, joined.sizes, strict=True):
        weave = bank.sites.get(name)
        if weave is not None:
            b_Nor = weave.b_NOr * weave.scale_N11
            whole_NOr = b_Nor.new_zeros(members, sum(joined.sizes), b_Nor.shape[2])
            whole_NOr[:, start : start + size] = b_Nor
            parts_a.append(weave.a_NrI)
            parts_b.append(whole_NOr)
        start += size
    if not parts_a:
        return None
    a_NIr = torch.cat(parts_a, dim=1).transpose(1, 2).contiguous()
    return a_NIr, torch.cat(parts_b, dim=2).transpose(1, 2).contiguous()


def _norm(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same norm in one operation; in 16 bits the module's own rounding is kept."""
    if module.weight.dtype != torch.float32:
        return module
    shape, weight, eps = module.weight.shape, module.weight, module.variance_epsilon
    return lambda x: rms_norm(x, shape, weight, eps)


def _rope_type(model: PreTrainedModel) -> str:
    parameters = getattr(model.config, "rope_parameters", None) or {}
    return parameters.get("rope_type", "default")
