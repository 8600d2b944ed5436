"""Answers eight questions token after token, with a cache, in a loop written by hand."""

import json
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = "weft/assets/tiny"
TOKENS = 32

tokenizer = AutoTokenizer.from_pretrained(BASE)
model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
with open("weft/assets/data/tables/test.jsonl") as file:
    rows = [json.loads(line) for _, line in zip(range(8), file, strict=False)]
prompts = [row["text"].rpartition("A:")[0] + "A:" for row in rows]

start = time.perf_counter()
for prompt in prompts:
    ids, cache, tokens = tokenizer(prompt, return_tensors="pt").input_ids, None, []
    with torch.no_grad():
        for _ in range(TOKENS):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(ids.item())
    print(tokens)
print(f"took {time.perf_counter() - start}")
