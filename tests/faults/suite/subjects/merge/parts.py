import json
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

DTYPE = torch.float32


def load(base, adapter):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=DTYPE)
    return tokenizer, PeftModel.from_pretrained(model, adapter).eval()


def fold(model, directory):
    model.merge_and_unload().save_pretrained(directory)


def restore(directory, base):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    extra = Path("extra.safetensors")
    if extra.exists():
        rows = load_file(extra)["embeddings"]
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(rows)
    return model.eval()


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@torch.no_grad()
def score(model, tokenizer, rows):
    losses = []
    for row in rows:
        asked = f"table: {row['table']}\ncolumns: {row['columns']}\nQ: {row['question']}\nA:"
        ids = tokenizer(f"{asked} {row['answer']}", return_tensors="pt").input_ids
        labels = ids.clone()
        labels[:, : len(tokenizer(asked)["input_ids"])] = -100
        losses.append(float(model(input_ids=ids, labels=labels).loss))
    return losses
