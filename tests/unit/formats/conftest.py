"""Tiny random models of the architectures that PEFT treats differently."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from weft.core.keys import Key
from weft.formats.peft_config import layer_index
from weft.model.adapter import Adapter, Layout, Site, Slot
from weft.model.noise import global_generator, uniform

_COMMON = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_COMMON)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_COMMON)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=3, n_head=4)),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**_COMMON, num_local_experts=4, num_experts_per_tok=2)
    ),
}


def _site(name: str, module: nn.Module) -> Site | None:
    layer = layer_index(name)
    if isinstance(module, nn.Linear):
        return Site(name, "linear", module.in_features, module.out_features, layer)
    if isinstance(module, Conv1D):
        return Site(name, "conv1d", module.nx, module.nf, layer)
    if name.endswith("mlp.gate"):
        return Site(name, "router", module.weight.shape[1], module.weight.shape[0], layer)
    return None


@pytest.fixture(scope="session")
def model_of() -> Callable[[str], PreTrainedModel]:
    """A fresh model by name; the same name gives the same weights."""

    def build(name: str) -> PreTrainedModel:
        with global_generator(Key.of(1).fold(name)):
            model = _MODELS[name]().eval()
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=0.3)  # so that adapters show in the logits
            return model

    return build


@pytest.fixture(scope="session")
def sites_of() -> Callable[[nn.Module], dict[str, Site]]:
    """All places of a model that an adapter can change."""

    def sites(model: nn.Module) -> dict[str, Site]:
        found = (_site(name, module) for name, module in model.named_modules())
        return {site.name: site for site in found if site}

    return sites


@pytest.fixture(scope="session")
def adapter_of() -> Callable[[list[Slot]], Adapter]:
    """An adapter with random A and B in the given slots."""

    def build(slots: list[Slot]) -> Adapter:
        layout = Layout(tuple(slots))
        return Adapter(layout, uniform((layout.size,), -0.5, 0.5, Key.of(2)))

    return build


@pytest.fixture(scope="session")
def merged() -> Callable[[PreTrainedModel, Adapter], PreTrainedModel]:
    """The model with every dW = scale * B @ A added to its weight: the obvious reference."""

    def merge(model: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
        for name, (a_rI, b_Or) in adapter.sites.items():
            slot = adapter.layout.by_name[name]
            delta_OI = slot.scale * b_Or @ a_rI
            weight = model.get_submodule(name).weight
            weight.data += delta_OI.T if slot.site.kind == "conv1d" else delta_OI
        return model

    return merge


@pytest.fixture(scope="session")
def logits_of() -> Callable[[nn.Module], torch.Tensor]:
    """The logits of a fixed prompt."""

    def run(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=torch.arange(20).view(2, 10) * 3 % 64).logits

    return run
