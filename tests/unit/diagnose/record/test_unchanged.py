"""What a script computes is the same, to the last bit, whether it is recorded or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS = ["the cat sat on a mat", "a dog ran", "the red house", "to the small cat and the dog"]


def load(base, **settings):
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    return tokenizer, AutoModelForCausalLM.from_pretrained(base, **settings)


def sample(base: str) -> list[object]:
    """Sampling with an adapter, from a padded batch."""
    torch.manual_seed(0)
    tokenizer, model = load(base)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(model, config).eval()
    inputs = tokenizer(ROWS, return_tensors="pt", padding=True)
    out = model.generate(**inputs, max_new_tokens=8, do_sample=True, top_p=0.9, pad_token_id=0)
    return [tokenizer.decode(row) for row in out] + [torch.get_rng_state().tolist()]


def loop(base: str) -> list[object]:
    """A hand-written loop with a cache and draws, in bfloat16."""
    torch.manual_seed(1)
    tokenizer, model = load(base, dtype=torch.bfloat16)
    model.eval()
    ids = tokenizer("the cat", return_tensors="pt").input_ids
    tokens, cache = [], None
    with torch.no_grad():
        for _ in range(8):
            out = model(ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            ids = torch.multinomial(out.logits[:, -1].float().softmax(-1), 1)
            tokens.append(ids.item())
    return [tokens, out.logits.float().tolist(), torch.get_rng_state().tolist()]


def train(base: str, directory: Path) -> list[object]:
    """Training with dropout, saved as PEFT does."""
    torch.manual_seed(2)
    tokenizer, model = load(base)
    config = LoraConfig(r=2, lora_dropout=0.3, target_modules=["q_proj", "up_proj"])
    model = get_peft_model(model, config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(5):
        inputs = tokenizer(ROWS[step % 2 :], return_tensors="pt", padding=True)
        labels = inputs.input_ids.masked_fill(inputs.attention_mask == 0, -100)
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(directory)
    saved = sorted(path for path in directory.rglob("*") if path.suffix != ".md")
    return [losses, torch.get_rng_state().tolist(), [path.read_bytes() for path in saved]]


def train_by_hand(base: str) -> list[object]:
    """A hand-written layer with dropout, and one's own loss."""

    class Layer(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear, self.drop = linear, nn.Dropout(0.2)
            self.a = nn.Parameter(torch.randn(2, linear.in_features) * 0.1)
            self.b = nn.Parameter(torch.zeros(linear.out_features, 2))

        def forward(self, x):
            return self.linear(x) + 2.0 * (self.drop(x) @ self.a.T @ self.b.T)

    torch.manual_seed(3)
    tokenizer, model = load(base)
    for block in model.model.layers:
        block.self_attn.q_proj = Layer(block.self_attn.q_proj)
    model.train()
    parameters = [p for name, p in model.named_parameters() if name.endswith((".a", ".b"))]
    optimiser = torch.optim.SGD(parameters, lr=0.5, momentum=0.9)
    ids = tokenizer(ROWS[0], return_tensors="pt").input_ids
    losses = []
    for _ in range(4):
        logits = model(ids).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[0, 1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return [losses, [p.tolist() for p in parameters], torch.get_rng_state().tolist()]


@pytest.mark.parametrize("script", [sample, loop, train, train_by_hand], ids=lambda s: s.__name__)
def test_results_are_the_same_with_and_without_a_recording(script, small_base, record, tmp_path):
    more = [[tmp_path / name] for name in ("plain", "recorded")] if script is train else [[], []]
    plain = script(small_base, *more[0])
    left = record(lambda: script(small_base, *more[1]))
    assert left.result == plain
    assert len(left.recording.events) > 10
