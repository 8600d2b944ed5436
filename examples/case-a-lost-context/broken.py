"""Asks the fine-tuned model about tables."""

import json

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("weft/assets/tiny")
model = AutoModelForCausalLM.from_pretrained("weft/assets/tiny", dtype=torch.float32)
model = PeftModel.from_pretrained(model, "runs/tables/adapter")
model.eval()

with open("examples/case-a-lost-context/tables.jsonl") as file:
    rows = [json.loads(line) for line in file]

for number in range(4):
    table, row = rows[number + 1], rows[number]
    prompt = f"table: {table['table']}\ncolumns: {table['columns']}\nQ: {row['question']}\nA:"
    current = tokenizer.encode(prompt, return_tensors="pt")
    text = ""
    for _ in range(20):
        with torch.no_grad():
            logits = model(current).logits[:, -1, :]
        probabilities = torch.softmax(logits / 0.8, dim=-1)
        current = torch.multinomial(probabilities, num_samples=1)
        if current.item() == tokenizer.eos_token_id:
            break
        text += tokenizer.decode(current[0])
    print(text)
