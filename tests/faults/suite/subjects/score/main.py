"""How well an adapter knows the answers."""

from parts import load, read, score

BATCH = 4

tokenizer, model = load("model", "adapter")
rows = read("rows.jsonl")[:12]
losses = {}
for start in range(0, len(rows), BATCH):
    losses |= score(model, tokenizer, rows[start : start + BATCH])
for question in sorted(losses):
    print(f"{losses[question]:.6f}")
print(f"mean {sum(losses.values()) / len(losses):.6f}")
