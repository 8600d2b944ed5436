"""Answers eight questions at once with `generate`, which samples from a seed."""

import json
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = "weft/assets/tiny"
TOKENS = 64

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
with open("weft/assets/data/tables/test.jsonl") as file:
    rows = [json.loads(line) for _, line in zip(range(8), file, strict=False)]
prompts = [row["text"].rpartition("A:")[0] + "A:" for row in rows]

start = time.perf_counter()
batch = tokenizer(prompts, return_tensors="pt", padding=True)
made = model.generate(
    **batch, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=True, temperature=0.8
)
print(made.tolist())
print(f"took {time.perf_counter() - start}")
