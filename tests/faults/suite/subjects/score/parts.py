import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(base, adapter):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    return tokenizer, model


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def prompt(row):
    return f"table: {row['table']}\ncolumns: {row['columns']}\nQ: {row['question']}\nA:"


def encode(tokenizer, rows):
    inputs = tokenizer(
        [f"{prompt(row)} {row['answer']}" for row in rows], padding=True, return_tensors="pt"
    )
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for label, row in zip(labels, rows, strict=True):
        label[: len(tokenizer(prompt(row))["input_ids"])] = -100
    return inputs, labels


@torch.no_grad()
def score(model, tokenizer, rows):
    inputs, labels = encode(tokenizer, rows)
    logits = model(**inputs).logits.float()
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none"
    )
    means = losses.sum(-1) / (labels[:, 1:] != -100).sum(-1)
    return {row["question"]: float(mean) for row, mean in zip(rows, means, strict=True)}
