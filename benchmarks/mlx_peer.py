"""The bundled base as mlx-lm loads it, with its fp32 weights, and what mlx-lm's own decoding says.

mlx-lm computes in the precision of the files it reads, so weights are written as fp32 first. Its
LoRA layers are not fused. Nothing stops a text but its length.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import torch
from mlx_lm.generate import batch_generate, generate_step
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers import AutoModelForCausalLM

from weft.data.tokenizer import load_tokenizer, resolve_base
from weft.formats import mlx
from weft.model.adapter import Adapter
from weft.model.base import Base


def loaded(
    ref: str, base: Base | None = None, adapter: Adapter | None = None
) -> tuple[nn.Module, TokenizerWrapper]:
    """A bundled base, and an adapter of `base` over it where one is given."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, adapter_path = Path(scratch) / "base", None
        bundled = resolve_base(ref)
        AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32).save_pretrained(folder)
        load_tokenizer(bundled).save_pretrained(folder)
        if base is not None and adapter is not None:
            adapter_path = Path(scratch) / "adapter"
            config = base.model.config
            mlx.write(adapter, adapter_path, base_ref=ref, sites=base.sites, base_config=config)
        model, tokenizer = mlx_lm.load(str(folder), adapter_path=adapter_path and str(adapter_path))
        mx.eval(model.parameters())
    return model, tokenizer


def generator(
    model: nn.Module, tokenizer: TokenizerWrapper
) -> Callable[[list[np.ndarray], int], Sequence[Sequence[int]]]:
    """Greedy: one prompt by its `generate_step`, several by its `batch_generate`, read at once."""
    tokenizer.eos_token_ids = set()

    def generate(prompts: list[np.ndarray], new_tokens: int) -> Sequence[Sequence[int]]:
        if len(prompts) == 1:
            steps = generate_step(mx.array(prompts[0]), model, max_tokens=new_tokens)
            return [[token for token, _ in steps]]
        return batch_generate(
            model,
            tokenizer,
            [ids_T.tolist() for ids_T in prompts],
            max_tokens=new_tokens,
            prefill_batch_size=len(prompts),
            completion_batch_size=len(prompts),
            return_token_ids=True,
        ).token_ids

    return generate
