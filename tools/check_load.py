"""Check that the bundled base loads in transformers and in mlx-lm and gives the same logits.

python -m tools.check_load transformers --out a.npy      (needs torch and transformers)
python -m tools.check_load mlx --out b.npy               (needs mlx-lm)
python -m tools.check_load compare a.npy b.npy
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

MODEL = Path(__file__).resolve().parents[1] / "weft" / "assets" / "tiny"
TEXT = (
    "Once there was a brave fox named Mira. She lived in a house near the river.\n"
    "Q: What is 12 + 30?\nA: 42\nthe soup is not bad at all . It was great.\n"
) * 4


def from_transformers(model: Path) -> np.ndarray:
    """Logits in float32 from transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        return network(tokenizer(TEXT, return_tensors="pt").input_ids).logits[0].numpy()


def from_mlx(model: Path) -> np.ndarray:
    """Logits in float32 from mlx-lm, on the CPU."""
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm import load

    mx.set_default_device(mx.cpu)
    network, tokenizer = load(str(model))
    network.update(tree_map(lambda value: value.astype(mx.float32), network.parameters()))
    logits = network(mx.array(tokenizer.encode(TEXT))[None])[0]
    return np.array(logits.astype(mx.float32))


def compare(paths: list[Path]) -> int:
    """Print how far apart two sets of logits are."""
    one, two = (np.load(path).astype(np.float64) for path in paths)
    if one.shape != two.shape:
        print(f"shapes differ: {one.shape} and {two.shape}")
        return 1
    gap = np.abs(one - two).max()
    same = float((one.argmax(-1) == two.argmax(-1)).mean())
    print(
        f"{one.shape[0]} positions, largest logit difference {gap:.2e}, "
        f"largest logit {np.abs(one).max():.2f}, same best token {same:.2%}"
    )
    return 0 if gap < 1e-2 else 1


def main() -> int:
    """Run one of the three parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("transformers", "mlx", "compare"))
    parser.add_argument("paths", type=Path, nargs="*")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.part == "compare":
        return compare(args.paths)
    logits = (from_transformers if args.part == "transformers" else from_mlx)(args.model)
    np.save(args.out, logits)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
