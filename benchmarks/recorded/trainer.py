"""Trains an adapter of PEFT with the Trainer of transformers."""

import json
import tempfile
import time

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

BASE = "weft/assets/tiny"
STEPS, ROWS = 20, 4

transformers.set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(BASE)
model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
with open("weft/assets/data/tables/train.jsonl") as file:
    lines = zip(range(STEPS * ROWS), file, strict=False)
    rows = [tokenizer(json.loads(line)["text"]).data for _, line in lines]

start = time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=ROWS,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
    trainer.remove_callback(transformers.PrinterCallback)  # it prints seconds, too
    trainer.train()
took = time.perf_counter() - start
print([each["loss"] for each in trainer.state.log_history if "loss" in each])
print(f"took {took}")
