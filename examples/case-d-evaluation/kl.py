"""How far a strong adapter moves the base: KL(base || adapter) on a few prompts."""

import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

BASE = "weft/assets/tiny"
PROMPTS = ["The small red house", "Name a color that", "One plus two is"]

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(BASE)
base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
config = LoraConfig(
    r=4,
    lora_alpha=2048,
    target_modules=["gate_proj", "up_proj"],
    layers_to_transform=[3],
    init_lora_weights=False,
)
model = get_peft_model(base, config).to(getattr(torch, sys.argv[1])).eval()
batch = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
with torch.no_grad():
    adapted = model(**batch).logits[:, -1].float().log_softmax(-1)
    with model.disable_adapter():
        plain = model(**batch).logits[:, -1].float().log_softmax(-1)
print(f"KL: {(plain.exp() * (plain - adapted)).sum(-1).mean().item():.4f} nats")
