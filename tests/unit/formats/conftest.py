"""Random adapters, and the obvious reference for what they do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from weft.core.keys import Key
from weft.model.adapter import Adapter, Layout, Slot
from weft.model.noise import uniform


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
