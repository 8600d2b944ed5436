import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

LONGEST = 160


def load(base, adapter):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter)
    return tokenizer, model.eval()


def read(path):
    with Path(path).open() as lines:
        return [json.loads(line) for line in lines]


def words(tokenizer, row):
    asked = f"table: {row['table']}\ncolumns: {row['columns']}\nQ: {row['question']}"
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
    )


def encode(tokenizer, text):
    tokenizer.truncation_side = "left"
    return tokenizer(text, return_tensors="pt", truncation=True, max_length=LONGEST)


def ask(model, tokenizer, row, settings):
    inputs = encode(tokenizer, words(tokenizer, row))
    out = model.generate(
        **inputs,
        **settings,
        pad_token_id=tokenizer.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    made = out.sequences[0, inputs["input_ids"].shape[1] :]
    scores = torch.cat(out.logits).log_softmax(-1).gather(1, made[:, None])
    return tokenizer.decode(made, skip_special_tokens=True), float(scores.sum())
