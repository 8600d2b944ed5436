"""Answers questions about tables with SQL: the prompt once, then token after token with a cache."""

import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = "weft/assets/tiny"
ADAPTER = "runs/tables/adapter"
ROWS = Path(__file__).parent / "tables.jsonl"


def choose(logits, temperature, top_p):
    """Draw from the fewest tokens that have `top_p` of the probability together."""
    probabilities, order = (logits / temperature).softmax(-1).sort(descending=True)
    probabilities[probabilities.cumsum(-1) - probabilities >= top_p] = 0
    return order[torch.multinomial(probabilities, 1)].item()


def answer(model, tokenizer, prompt, max_tokens, temperature, top_p):
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    tokens, cache = [], None
    while len(tokens) < max_tokens:
        with torch.no_grad():
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        token = choose(out.logits[0, -1].float(), temperature, top_p)
        if token == tokenizer.eos_token_id:
            break
        tokens.append(token)
        ids = torch.tensor([[token]])
    return tokenizer.decode(tokens)


def main():
    torch.manual_seed(7)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, ADAPTER).eval()
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    for row in rows[:4]:
        prompt = f"table: {row['table']}\ncolumns: {row['columns']}\nQ: {row['question']}\nA:"
        print(answer(model, tokenizer, prompt, max_tokens=50, temperature=0.7, top_p=0.95))


main()
