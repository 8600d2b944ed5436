"""Scores a fine-tuned adapter on held-out questions."""

import json

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = "weft/assets/tiny"

tokenizer = AutoTokenizer.from_pretrained(BASE)
base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
model = PeftModel.from_pretrained(base, "runs/tables/adapter").eval()
trainable = sum(each.numel() for each in model.parameters() if each.requires_grad)
print(f"trainable parameters: {trainable}")

with open("weft/assets/data/tables/valid.jsonl") as file:
    texts = [json.loads(line)["text"] for _, line in zip(range(8), file, strict=False)]
batch = tokenizer(texts, return_tensors="pt", padding=True)
labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
with torch.no_grad():
    print(f"loss: {model(**batch, labels=labels).loss.item():.4f}")
