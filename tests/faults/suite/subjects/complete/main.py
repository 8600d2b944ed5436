"""Answers questions about tables in a conversation, with `generate`."""

import torch
from parts import ask, load, read

SEED = 11
SETTINGS = {
    "max_new_tokens": 30,
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.95,
    "top_k": 0,
    "repetition_penalty": 1.0,
}

tokenizer, model = load("model", "adapter")
torch.manual_seed(SEED)
for row in read("rows.jsonl")[:6]:
    text, score = ask(model, tokenizer, row, SETTINGS)
    print(f"{score:.5f} {text!r}")
