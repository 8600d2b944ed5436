"""Tell characters apart that pretraining never saw: `python -m tools.apart`.

All embeddings of tokens that never occur end at the same point: nothing but weight decay and the
softmax moves them, and both move all alike. The model can then neither read nor write such a
character, whatever adapter is trained: `<` is `+`. Each printable one gets a draw of its own, and
the common part is shortened; it still keeps them out of other texts. No other number changes, and
a second time nothing does.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tools.sample import MODEL

NAME = "model.embed_tokens.weight"
PRINTABLE = map(chr, range(0x21, 0x7F))
SEED = 20
COMMON = 0.7
"""What stays of the common part. With less of it the characters show up in other texts."""
ALIKE = 0.995
"""The cosine from which on two embeddings are one."""


def unseen(weight_VD: torch.Tensor, tokenizer: Tokenizer) -> dict[str, int]:
    """The printable characters whose embedding is that of the padding token, and their ids."""
    padding = tokenizer.token_to_id("<|pad|>")
    alike_V = torch.cosine_similarity(weight_VD, weight_VD[padding][None]) > ALIKE
    ids = {character: tokenizer.token_to_id(character) for character in PRINTABLE}
    return {character: i for character, i in ids.items() if i is not None and alike_V[i]}


def told_apart(weight_VD: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """The same with other rows `ids`."""
    found_VD = weight_VD.float()
    generator = torch.Generator().manual_seed(SEED)
    own = torch.randn(len(ids), found_VD.shape[1], generator=generator)
    found_VD[ids] = COMMON * found_VD[ids] + own / found_VD.shape[1] ** 0.5
    return found_VD.to(weight_VD.dtype)


def main() -> None:
    """Change the model in place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    model = parser.parse_args().model
    path = model / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    found = unseen(tensors[NAME].float(), Tokenizer.from_file(str(model / "tokenizer.json")))
    if found:
        tensors[NAME] = told_apart(tensors[NAME], list(found.values()))
        written = path.with_suffix(".new")
        save_file(tensors, written, metadata)
        os.replace(written, path)
    print(f"told apart: {' '.join(found) or 'nothing'}")


if __name__ == "__main__":
    main()
