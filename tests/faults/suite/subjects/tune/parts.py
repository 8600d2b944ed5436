import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

SHAPE = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}


def build(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if Path("adapter").exists():
        model = PeftModel.from_pretrained(model, "adapter", is_trainable=True)
    else:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **SHAPE))
    model.enable_input_require_grads()
    return tokenizer, model.train()


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def batches(rows, size):
    for epoch in range(100):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch))
        for start in range(0, len(rows) - size + 1, size):
            yield [rows[i] for i in order[start : start + size]]


def encode(tokenizer, rows):
    asked = [
        f"table: {row['table']}\ncolumns: {row['columns']}\nQ: {row['question']}\nA:"
        for row in rows
    ]
    whole = [f"{q} {row['answer']}" for q, row in zip(asked, rows, strict=True)]
    inputs = tokenizer(whole, padding=True, return_tensors="pt")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for label, q in zip(labels, asked, strict=True):
        label[: len(tokenizer(q)["input_ids"])] = -100
    return inputs, labels


def loss_of(model, inputs, labels):
    logits = model(**inputs).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )


def step(model, tokenizer, optimiser, rows, micro):
    parts = [encode(tokenizer, rows[i : i + micro]) for i in range(0, len(rows), micro)]
    count = sum(int((labels[:, 1:] != -100).sum()) for _, labels in parts)
    total = 0.0
    for inputs, labels in parts:
        loss = loss_of(model, inputs, labels) / count
        loss.backward()
        total += float(loss)
    optimiser.step()
    optimiser.zero_grad()
    return total
