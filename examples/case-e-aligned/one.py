"""Trains an adapter and asks it, with what the libraries have for that."""

import json

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = "weft/assets/tiny"

torch.manual_seed(11)
tokenizer = AutoTokenizer.from_pretrained(BASE)
model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
optimiser = torch.optim.AdamW(
    [each for each in model.parameters() if each.requires_grad], lr=1e-3, weight_decay=0.0
)
with open("weft/assets/data/tables/train.jsonl") as file:
    texts = [json.loads(line)["text"] for _, line in zip(range(16), file, strict=False)]

model.train()
for start in range(0, 16, 4):
    batch = tokenizer(texts[start : start + 4], return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss = model(**batch, labels=labels).loss
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    print(f"loss {loss.item():.4f}")

model.eval()
prompt = tokenizer(texts[0].rpartition("A:")[0] + "A:", return_tensors="pt")
said = model.generate(**prompt, max_new_tokens=16, do_sample=False)
print(tokenizer.decode(said[0, prompt["input_ids"].shape[1] :]))
