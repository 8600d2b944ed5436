import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

STOP = " WHERE"


def load(base, adapter):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter)
    return tokenizer, model.eval()


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def prompt(row):
    return f"table: {row['table']}\ncolumns: {row['columns']}\nQ: {row['question']}\nA:"


def pick(logits, temperature, top_p):
    if temperature == 0:
        return int(logits.argmax())
    p = torch.softmax(logits / temperature, -1)
    p, order = p.sort(descending=True)
    p = torch.where(p.cumsum(-1) - p < top_p, p, 0.0)
    return int(order[torch.multinomial(p / p.sum(), 1)])


@torch.no_grad()
def answer(model, tokenizer, row, tokens, temperature, top_p):
    given = tokenizer(prompt(row), return_tensors="pt").input_ids
    cache, seen, made, text, score = None, 0, [], "", 0.0
    for _ in range(tokens):
        positions = torch.arange(seen, seen + given.shape[1])[None]
        out = model(input_ids=given, position_ids=positions, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        seen += given.shape[1]
        token = pick(out.logits[0, -1], temperature, top_p)
        score += float(out.logits[0, -1].log_softmax(-1)[token])
        if token == tokenizer.eos_token_id:
            break
        made.append(token)
        text = tokenizer.decode(made)
        if STOP in text:
            break
        given = torch.tensor([[token]])
    return text, score
