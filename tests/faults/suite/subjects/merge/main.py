"""Puts an adapter into its base, writes that, and reads it again to score it."""

from parts import fold, load, read, restore, score

tokenizer, model = load("model", "adapter")
fold(model, "folded")
model = restore("folded", "model")
losses = score(model, tokenizer, read("rows.jsonl")[:8])
for loss in losses:
    print(f"{loss:.6f}")
print(f"mean {sum(losses) / len(losses):.6f}")
