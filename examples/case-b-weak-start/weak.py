"""Evolution strategies on a rank-4 adapter: small random changes, kept where they help."""

import json
import math

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = "weft/assets/tiny"
RANK, ALPHA, SIGMA, MEMBERS, STEPS, LR = 4, 8.0, 0.02, 4, 4, 0.05


class Lora(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.empty(RANK, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, RANK))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.lora_A.data *= 0.05  # so that the start is close to the base
        self.scaling = ALPHA / RANK

    def forward(self, x):
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T * self.scaling


def main():
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model.requires_grad_(False)
    for layer in model.model.layers[-2:]:
        layer.self_attn.q_proj = Lora(layer.self_attn.q_proj)
        layer.self_attn.v_proj = Lora(layer.self_attn.v_proj)
    factors = [each for each in model.parameters() if each.requires_grad]
    with open("weft/assets/data/tables/train.jsonl") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(4), file, strict=False)]
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=64)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    optimiser = torch.optim.SGD(factors, lr=LR)
    with torch.no_grad():
        print(f"start: reward {-model(**batch, labels=labels).loss.item():.4f}")
    for step in range(STEPS):
        slopes = [torch.zeros_like(each) for each in factors]
        total = 0.0
        for _ in range(MEMBERS):
            noise = [torch.randn_like(each) * SIGMA for each in factors]
            with torch.no_grad():
                rewards = []
                for sign in (1, -1):
                    for each, move in zip(factors, noise, strict=True):
                        each.add_(sign * move)
                    rewards.append(-model(**batch, labels=labels).loss.item())
                    for each, move in zip(factors, noise, strict=True):
                        each.sub_(sign * move)
            total += sum(rewards)
            for slope, move in zip(slopes, noise, strict=True):
                slope += (rewards[0] - rewards[1]) * move / (2 * SIGMA**2 * MEMBERS)
        for each, slope in zip(factors, slopes, strict=True):
            each.grad = -slope
        optimiser.step()
        print(f"step {step + 1}: reward {total / (2 * MEMBERS):.4f}")


main()
