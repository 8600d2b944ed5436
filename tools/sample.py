"""Let the bundled base write text: `python -m tools.sample --prompt "Once there was"`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(__file__).resolve().parents[1] / "weft" / "assets" / "tiny"


def sample(prompt: str, seed: int, temperature: float, length: int, model: Path = MODEL) -> str:
    """Continue a prompt token by token with a generator of its own; temperature 0 is greedy."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(length):
            logits = network(ids).logits[0, -1]
            if temperature > 0:
                chances = torch.softmax(logits / temperature, -1)
                chosen = torch.multinomial(chances, 1, generator=generator)
            else:
                chosen = logits.argmax(-1, keepdim=True)
            if int(chosen) == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, chosen[None]], 1)
    return tokenizer.decode(ids[0, start:])


def main() -> None:
    """Print the prompt and how it goes on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--length", type=int, default=120)
    parser.add_argument("--model", type=Path, default=MODEL)
    args = parser.parse_args()
    prompt = args.prompt.replace("\\n", "\n")
    text = sample(prompt, args.seed, args.temperature, args.length, args.model)
    print(prompt + text)


if __name__ == "__main__":
    main()
