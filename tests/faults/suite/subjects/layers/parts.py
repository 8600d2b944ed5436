import json
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

RANK = 8
ALPHA = 16


class LowRank(nn.Module):
    def __init__(self, inner, rank, alpha):
        super().__init__()
        self.inner = inner
        self.down = nn.Parameter(torch.randn(rank, inner.in_features) / rank)
        self.up = nn.Parameter(torch.zeros(inner.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x):
        return self.inner(x) + self.scale * (x @ self.down.T) @ self.up.T


def load(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return tokenizer, model.requires_grad_(False).train()


def adapt(model):
    layers = []
    for block in model.model.layers:
        for name in ("q_proj", "v_proj"):
            layer = LowRank(getattr(block.self_attn, name), RANK, ALPHA)
            setattr(block.self_attn, name, layer)
            layers.append(layer)
    return layers


@torch.no_grad()
def fold(layers):
    for layer in layers:
        layer.inner.weight += layer.scale * layer.up @ layer.down
        layer.up.zero_()


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()][:24]


def batches(rows, size):
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def loss_of(model, tokenizer, rows):
    asked = [
        f"table: {row['table']}\ncolumns: {row['columns']}\nQ: {row['question']}\nA:"
        for row in rows
    ]
    whole = [f"{q} {row['answer']}" for q, row in zip(asked, rows, strict=True)]
    inputs = tokenizer(whole, padding=True, return_tensors="pt")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for label, q in zip(labels, asked, strict=True):
        label[: len(tokenizer(q)["input_ids"])] = -100
    return model(**inputs, labels=labels).loss
