"""Trains an adapter and asks it, everything by hand."""

import json

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

SETTINGS = {
    "targets": ["v_proj", "q_proj"],
    "alpha": 16,
    "rank": 8,
    "rate": 1e-3,
    "rows": 16,
    "batch": 4,
}


def loss_of(model, tokenizer, texts):
    rows = [tokenizer(text).input_ids for text in texts]
    width = max(map(len, rows)) + 3  # some padding more than needed
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def greedy(model, tokenizer, prompt, tokens):
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    start = ids.shape[1]
    for _ in range(tokens):
        with torch.no_grad():
            token = model(input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat([ids, token.view(1, 1)], dim=1)
        if token == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[0, start:])


def main():
    torch.manual_seed(11)
    tokenizer = AutoTokenizer.from_pretrained("weft/assets/tiny")
    base = AutoModelForCausalLM.from_pretrained("weft/assets/tiny", dtype=torch.float32)
    config = LoraConfig(
        target_modules=SETTINGS["targets"], lora_alpha=SETTINGS["alpha"], r=SETTINGS["rank"]
    )
    model = get_peft_model(base, config)
    model.train()
    factors = [each for name, each in model.named_parameters() if "lora_" in name]
    optimiser = torch.optim.AdamW(factors, lr=SETTINGS["rate"], weight_decay=0.0)
    with open("weft/assets/data/tables/train.jsonl") as file:
        lines = [next(file) for _ in range(SETTINGS["rows"])]
    texts = [json.loads(line)["text"] for line in lines]
    for start in range(0, len(texts), SETTINGS["batch"]):
        optimiser.zero_grad()
        loss = loss_of(model, tokenizer, texts[start : start + SETTINGS["batch"]])
        loss.backward()
        optimiser.step()
        print(f"loss {loss.item():.4f}")
    model.eval()
    print(greedy(model, tokenizer, texts[0].rpartition("A:")[0] + "A:", 16))


main()
