"""The forward of a Llama-like model in as few operations as it takes.

A decoding step is small: much of its time goes into starting operations, not into arithmetic.
Here layers that read the same input are one product, adapters of such layers are one low-rank
update, and nothing is computed that a step does not need. The weights are the model's own: its
layers become views of the joined ones.

Shapes: T positions (M of each of N members, one member after another, so that a member's are one
matrix), D hidden size, H query heads, G key/value heads, d head size, I inputs and O outputs of a
joined layer, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.linalg import vector_norm
from torch.nn.functional import embedding, rms_norm
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
)

from weft.core.memory import give_back
from weft.model.bank import Bank
from weft.model.lowrank import add_product
from weft.model.products import product
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

    def embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        """What the first layer reads [T, D]."""
        body: Any = self.model.base_model
        return embedding(ids_T, body.embed_tokens.weight)

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
        activation=first.mlp.act_fn.forward,
        kv_heads=first.self_attn.k_proj.out_features // first.self_attn.head_dim,
        head_size=first.self_attn.head_dim,
        scaling=first.self_attn.scaling,
    )


Attend = Callable[[int, Layer, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(number of the layer, layer, q [T, H, d], k and v [T, G, d]) to [T, H, d]."""


@dataclass(frozen=True, eq=False)
class LeanForward:
    """Hidden states through the layers, each member's updates included."""

    lean: LeanModel
    members: int
    updates: Mapping[Joined, tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, lean: LeanModel, weft: Weft) -> LeanForward:
        """With the members of `weft`, which all lie on its one stack, if any."""
        members, bank = len(weft.bank.members), weft.bank
        if weft.stacks is not None:
            bank = bank.over(weft.stacks.only([0] * members))
        updates = {
            joined: update
            for layer in lean.layers
            for joined in layer.joined
            if (update := _join_updates(joined, bank)) is not None
        }
        return cls(lean, members, updates)

    def only(self, members: Sequence[int]) -> LeanForward:
        """These members, in this order."""
        at = list(members)
        return LeanForward(
            self.lean,
            len(at),
            {joined: (a.mT[at].mT, b[at]) for joined, (a, b) in self.updates.items()},
        )

    @property
    def first_adapted(self) -> int:
        """The layer below which all members are the base."""
        layers = self.lean.layers
        adapted = (
            n for n, layer in enumerate(layers) if not self.updates.keys().isdisjoint(layer.joined)
        )
        return next(adapted, len(layers))

    def __call__(
        self,
        x_TD: torch.Tensor,
        rotation_T: tuple[torch.Tensor, torch.Tensor],
        attend: Attend,
        layers: range,
        ends: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x after these layers; with `ends`, the last of them goes on with these positions only."""
        lean = self.lean
        cos_T1d, sin_T1d = rotation_T
        for number in layers:
            layer = lean.layers[number]
            y_TO = self._product(layer.qkv, layer.first_norm(x_TD))
            heads_Thd = y_TO.unflatten(1, (-1, lean.head_size))
            queries = heads_Thd.shape[1] - 2 * lean.kv_heads
            qk_Thd = heads_Thd.narrow(1, 0, queries + lean.kv_heads)
            rolled_Thd = qk_Thd.roll(lean.head_size // 2, -1)
            qk_Thd.mul_(cos_T1d).add_(rolled_Thd.mul_(sin_T1d))
            q_THd, k_TGd, v_TGd = heads_Thd.split((queries, lean.kv_heads, lean.kv_heads), dim=1)
            a_TI = attend(number, layer, q_THd, k_TGd, v_TGd).flatten(1)
            if ends is not None and number == layers[-1]:
                a_TI, x_TD = a_TI[ends], x_TD[ends]
            x_TD = self._product(layer.out, a_TI).add_(x_TD)
            y_TO = self._product(layer.gate_up, layer.second_norm(x_TD))
            gate_TF, up_TF = y_TO.chunk(2, dim=1)
            x_TD = self._product(layer.down, lean.activation(gate_TF).mul_(up_TF)).add_(x_TD)
        return x_TD

    def _product(self, joined: Joined, x_TI: torch.Tensor) -> torch.Tensor:
        y_TO = product(x_TI, joined.weight_OI, joined.bias_O)
        update = self.updates.get(joined)
        if update is not None:
            a_NIr, b_NrO = update
            x_NMI = x_TI.view(self.members, -1, x_TI.shape[1])
            z_NMr = torch.bmm(x_NMI.float(), a_NIr)
            add_product(y_TO.view(self.members, -1, y_TO.shape[1]), z_NMr, b_NrO)
        return y_TO


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
    return torch.cat(parts_a, dim=1).mT, torch.cat(parts_b, dim=2).mT.contiguous()


def _norm(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same norm in one operation; in 16 bits the module's own rounding is kept."""
    if module.weight.dtype != torch.float32:
        return module
    shape, weight, eps = module.weight.shape, module.weight, module.variance_epsilon
    if weight.device.type != "cpu":
        return lambda x: rms_norm(x, shape, weight, eps)
    eps_, share = weight.new_tensor(eps), 1 / len(weight)

    def norm(x_TD: torch.Tensor) -> torch.Tensor:
        """In half the operations into which PyTorch takes its own apart."""
        length_T1 = vector_norm(x_TD, dim=-1, keepdim=True)
        return (x_TD * torch.addcmul(eps_, length_T1, length_T1, value=share).rsqrt_()).mul_(weight)

    return norm


def _rope_type(model: PreTrainedModel) -> str:
    parameters = getattr(model.config, "rope_parameters", None) or {}
    return parameters.get("rope_type", "default")
