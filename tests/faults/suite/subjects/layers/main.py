"""Trains low-rank layers written by hand, and puts them into the weights now and then."""

import torch
from parts import adapt, batches, fold, load, loss_of, read

SEED = 5
RATE = 5e-3
STEPS = 10
EVERY = 4

torch.manual_seed(SEED)
tokenizer, model = load("model")
layers = adapt(model)
rows = read("rows.jsonl")
parameters = [p for layer in layers for p in (layer.down, layer.up)]
optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
number = 0
while number < STEPS:
    for group in batches(rows, 4):
        loss = loss_of(model, tokenizer, group)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        number += 1
        print(f"{number} {float(loss.detach()):.6f}")
        if number % EVERY == 0:
            fold(layers)
        if number == STEPS:
            break
