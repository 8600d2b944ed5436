"""Trains an adapter, with a loop of its own."""

import torch
from parts import batches, build, read, step

SEED = 3
RATE = 2e-3
STEPS = 8
MICRO = 2

torch.manual_seed(SEED)
tokenizer, model = build("model")
parameters = [p for p in model.parameters() if p.requires_grad]
optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: 1 - k / STEPS)
rows = read("rows.jsonl")
for number, group in zip(range(STEPS), batches(rows, 4), strict=False):
    loss = step(model, tokenizer, optimiser, group, MICRO)
    schedule.step()
    print(f"{number + 1} {loss:.6f}")
model.save_pretrained("trained")
