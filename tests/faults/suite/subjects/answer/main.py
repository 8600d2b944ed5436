"""Answers questions about tables, with a decoding loop of its own."""

import torch
from parts import answer, load, read

SEED = 7
TOKENS = 40
TEMPERATURE = 0.7
TOP_P = 0.95

torch.manual_seed(SEED)
tokenizer, model = load("model", "adapter")
for row in read("rows.jsonl")[:6]:
    text, score = answer(model, tokenizer, row, TOKENS, TEMPERATURE, TOP_P)
    print(f"{score:.5f} {text!r}")
