import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(base, adapter):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter)
    return tokenizer, model.eval()


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def prompt(row):
    return f"table: {row['table']}\ncolumns: {row['columns']}\nQ: {row['question']}\nA:"


def encode(tokenizer, rows, spare):
    texts = [prompt(row) for row in rows]
    longest = max(len(ids) for ids in tokenizer(texts)["input_ids"]) + spare
    inputs = tokenizer(texts, padding="max_length", max_length=longest, return_tensors="pt")
    return inputs["input_ids"], inputs["attention_mask"]


def places(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def answers(model, tokenizer, rows, tokens, spare):
    given, mask = encode(tokenizer, rows, spare)
    positions = places(mask)
    cache, made, scores = None, [[] for _ in rows], []
    for _ in range(tokens):
        out = model(
            input_ids=given,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        picked = out.logits[:, -1].argmax(-1)
        scores.append(out.logits[:, -1].log_softmax(-1).amax(-1))
        for row, token in zip(made, picked.tolist(), strict=True):
            row.append(token)
        given = picked[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], -1)
        positions = positions[:, -1:] + 1
    ends = [row.index(0) if 0 in row else len(row) for row in made]
    return [
        (tokenizer.decode(row[:end]), float(score[:end].sum()))
        for row, end, score in zip(made, ends, torch.stack(scores, 1), strict=True)
    ]
