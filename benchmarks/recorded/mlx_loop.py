"""Answers eight questions token after token with a model of mlx-lm and its cache."""

import json
import time

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load

BASE = "weft/assets/tiny"
TOKENS = 32

model, tokenizer, *_ = load(BASE)
with open("weft/assets/data/tables/test.jsonl") as file:
    rows = [json.loads(line) for _, line in zip(range(8), file, strict=False)]
prompts = [row["text"].rpartition("A:")[0] + "A:" for row in rows]

start = time.perf_counter()
for prompt in prompts:
    cache, fed, tokens = make_prompt_cache(model), mx.array(tokenizer.encode(prompt))[None], []
    for _ in range(TOKENS):
        token = mx.argmax(model(fed, cache=cache)[:, -1], axis=-1)
        tokens.append(int(token.item()))
        fed = token[None]
    print(tokens)
print(f"took {time.perf_counter() - start}")
