"""Fifty AdamW steps of Weft and of PEFT from the same start, on the same batches."""

import peft
import pytest
import torch

from weft.core.batch import IGNORE
from weft.core.keys import Key
from weft.engines.scorer import LocalScorer
from weft.methods.config import OptimiserConfig
from weft.methods.optimise import Moments, update
from weft.model.adapter import initial_adapter
from weft.model.config import AdapterConfig
from weft.model.sites import choose_sites

STEPS, LR = 50, 5e-3

CASES = {
    "llama": ("llama", {"targets": ("q_proj", "v_proj", "down_proj")}),
    "gpt2 conv1d": ("gpt2", {"targets": ("c_attn", "c_proj")}),
    "qwen2 biases": ("qwen2", {"targets": ("q_proj", "k_proj", "v_proj")}),
    "rslora": ("llama", {"targets": ("q_proj", "o_proj"), "rslora": True}),
    "last layers": ("llama", {"targets": ("q_proj", "v_proj"), "layers": "last 2"}),
}


def peft_model(model, config: AdapterConfig, layout, flat_P):
    """PEFT's adapter on `model`, with Weft's initial A and B."""
    layers = sorted({slot.site.layer for slot in layout.slots}) if config.layers else None
    wrapped = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.effective_alpha,
            use_rslora=config.rslora,
            target_modules=list(config.targets),
            layers_to_transform=layers,
            fan_in_fan_out=layout.slots[0].site.kind == "conv1d",
        ),
    )
    for name, (a_rI, b_Or) in layout.factors(flat_P).items():
        module = wrapped.base_model.model.get_submodule(name)
        module.lora_A["default"].weight.data.copy_(a_rI)
        module.lora_B["default"].weight.data.copy_(b_Or)
    return wrapped


def padded(batch):
    longest = max(example.tokens for example in batch.examples)
    ids = torch.zeros(len(batch.examples), longest, dtype=torch.long)
    labels = torch.full_like(ids, IGNORE)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(batch.examples):
        ids[row, : example.tokens] = torch.tensor(example.ids_T)
        labels[row, : example.tokens] = torch.tensor(example.labels_T)
        mask[row, : example.tokens] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


@pytest.mark.parametrize("case", CASES)
def test_training_matches_peft(case, make_base, make_model, make_batch):
    architecture, settings = CASES[case]
    config = AdapterConfig(rank=4, alpha=8, **settings)
    base = make_base(architecture)
    layout = choose_sites(base.sites, config)
    engine = LocalScorer(base, layout)
    theta_LP = initial_adapter(layout, Key.of(0)).flat[None]

    theirs = peft_model(make_model(architecture), config, layout, theta_LP[0])
    trainable = [p for p in theirs.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) == layout.size
    adamw = torch.optim.AdamW(trainable, lr=LR, weight_decay=0.01)

    optimiser = OptimiserConfig(lr=LR, weight_decay=0.01)
    moments = Moments.fresh(theta_LP)
    for step in range(STEPS):
        batch = make_batch(step)
        loss = theirs(**padded(batch)).loss
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        found = engine.gradient(theta_LP, [batch], [Key.of(step)])
        assert found.loss_L[0] == pytest.approx(loss.item(), rel=1e-5), step
        theta_LP, moments = update(
            theta_LP, found.gradient_LP, torch.tensor([[LR]]), moments, optimiser
        )
    for name, (a_rI, b_Or) in layout.factors(theta_LP[0]).items():
        module = theirs.base_model.model.get_submodule(name)
        torch.testing.assert_close(a_rI, module.lora_A["default"].weight, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(b_Or, module.lora_B["default"].weight, rtol=1e-4, atol=1e-4)
