"""LoRA by hand: low-rank layers that can be merged into their base and begin anew."""

import json
import math
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = "weft/assets/tiny"


class Lora(nn.Module):
    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base = base
        self.scaling = alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.restart()

    def restart(self):
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def forward(self, x):
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T * self.scaling

    @torch.no_grad()
    def merge(self):
        self.base.weight += self.scaling * self.lora_B @ self.lora_A
        self.restart()


def settings():
    return json.loads((Path(__file__).parent / "settings.json").read_text())


def adapted(make, rank, alpha):
    """The base with `make(linear, rank, alpha)` in the place of queries and values."""
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model.requires_grad_(False)
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            setattr(layer.self_attn, name, make(getattr(layer.self_attn, name), rank, alpha))
    return model


def batches(rows, batch_size):
    """One epoch: texts as ids, with labels."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    with open("weft/assets/data/tables/train.jsonl") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(rows), file, strict=False)]
    for start in range(0, rows, batch_size):
        batch = tokenizer(texts[start : start + batch_size], return_tensors="pt", padding=True)
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        yield {**batch, "labels": labels}


def train(model, given, after_step=None, after_epoch=None):
    """Plain AdamW. `after_step` and `after_epoch` are told how many steps there were."""
    factors = [each for each in model.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(factors, lr=given["lr"], weight_decay=0.0)
    step = 0
    while step < given["steps"]:
        for batch in batches(given["rows"], given["batch_size"]):
            loss = model(**batch).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
            print(f"step {step}: loss {loss.item():.4f}")
            if after_step:
                after_step(step)
        if after_epoch:
            after_epoch(step)


def merge_all(model):
    for module in model.modules():
        if isinstance(module, Lora):
            module.merge()
