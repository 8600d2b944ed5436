"""How mlx-lm's models compute the next token's logits, row by row, each with its prompt cache.

Shapes: N members, R prompts, B = R * N rows with members fastest, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx_lm.models.cache import KVCache, make_prompt_cache

from weft.model.positions import Sighting

PREFILL = 2048
"""Tokens of a prompt that one forward takes (as `mlx_lm.generate`)."""


@dataclass(frozen=True, eq=False)
class _Row:
    """A text, the model of its member, and what that model remembers of it."""

    model: nn.Module
    cache: list[Any]

    def feed(self, tokens: Sequence[int]) -> mx.array:
        """Append tokens; logits [V] after the last, not evaluated yet."""
        return self.model(mx.array(list(tokens))[None], cache=self.cache)[0, -1]


class MlxStepper:
    """A forward for each row and step, with the calls that `mlx_lm.generate` makes."""

    def __init__(self, models: Sequence[nn.Module], prompts: Sequence[np.ndarray]) -> None:
        """`models` are the members'."""
        self.prompts = [prompt.tolist() for prompt in prompts for _ in models]
        self.rows = [_Row(model, make_prompt_cache(model)) for _ in prompts for model in models]
        self.logits_BV: list[mx.array] = []

    def start(self) -> torch.Tensor:
        """The prefill: all of a prompt but its last token in large pieces, then that token."""
        for row, prompt in zip(self.rows, self.prompts, strict=True):
            for at in range(0, len(prompt) - 1, PREFILL):
                row.feed(prompt[at : min(at + PREFILL, len(prompt) - 1)])
                mx.eval([layer.state for layer in row.cache])
            self.logits_BV.append(row.feed(prompt[-1:]))
            mx.eval(self.logits_BV[-1])
        mx.clear_cache()  # what the prefills used
        return self._logits()

    def extend(self, token_B: torch.Tensor, live_B: Sequence[bool]) -> torch.Tensor:
        """One token a live row."""
        for number, (token, live) in enumerate(zip(token_B.tolist(), live_B, strict=True)):
            if live:
                self.logits_BV[number] = self.rows[number].feed([token])
        return self._logits()

    def keep(self, rows: Sequence[int], members: Sequence[int]) -> None:
        """These rows, each with its own model and cache."""
        self.rows = [self.rows[i] for i in rows]
        self.logits_BV = [self.logits_BV[i] for i in rows]

    def positions(self, seen: Sequence[Sighting]) -> list[torch.Tensor]:
        """None: rotations happen inside mlx-lm."""
        return []

    def _logits(self) -> torch.Tensor:
        return torch.from_numpy(np.array(mx.stack(self.logits_BV).astype(mx.float32)))


def slides(model: nn.Module) -> bool:
    """Whether the model has layers that see a window only: their cache is not a plain one."""
    return any(type(layer) is not KVCache for layer in make_prompt_cache(model))
