"""What a model's frozen weights cannot do without: counted products, and bytes to read.

Layers that read the same input count as one product of all their outputs. Adapters, attention,
norms and the optimiser are left out: what is counted is a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from benchmarks.limit import Product

Sides = tuple[int, int]
"""Inputs and outputs."""


@dataclass(frozen=True)
class Stack:
    """Layers of matrices, `first` of which reads what enters the layer, and an output head."""

    layers: int
    first: Sides
    others: tuple[Sides, ...]
    head: Sides

    @classmethod
    def of_llama(cls, config: PretrainedConfig) -> Stack:
        """A Llama's."""
        wide, inner, heads = (
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
        )
        size = wide // heads
        return cls(
            config.num_hidden_layers,
            (wide, (heads + 2 * config.num_key_value_heads) * size),
            ((wide, wide), (wide, 2 * inner), (inner, wide)),
            (wide, config.vocab_size),
        )

    @property
    def weights(self) -> int:
        """Numbers in all of them."""
        layer = sum(inputs * outputs for inputs, outputs in (self.first, *self.others))
        return self.layers * layer + self.head[0] * self.head[1]

    def body(self, tokens: int, times: int = 1) -> list[Product]:
        """All layers on so many tokens, so many times."""
        sides = (self.first, *self.others)
        return [Product(tokens, *each, self.layers * times) for each in sides]

    def training(
        self, tokens: int, targets: int, last: int | None = None, epochs: int = 1
    ) -> list[Product]:
        """Forward, and back to each layer's input, where the last layers are adapted, or all.

        Frozen weights have no gradient, nothing below the first adapted layer has one, and it is
        read once for all epochs. Logits are counted where there is a label.
        """
        upper = last or self.layers
        back = [each[::-1] for each in self.others]
        return [
            *(Product(tokens, *each, self.layers - upper) for each in (self.first, *self.others)),
            *(Product(tokens, *each, upper * epochs) for each in (self.first, *self.others)),
            Product(tokens, *self.first[::-1], (upper - 1) * epochs),
            *(Product(tokens, *each, upper * epochs) for each in back),
            Product(targets, *self.head, epochs),
            Product(targets, *self.head[::-1], epochs),
        ]

    def decoding(self, rows: int, prompt: int, new: int) -> list[Product]:
        """Prompts read at once, then a token a row and step; logits for each new token."""
        return [
            *self.body(rows * prompt),
            *self.body(rows, new - 1),
            Product(rows, *self.head, new),
        ]

    def decoding_bytes(
        self, rows: int, prompt: int, new: int, token_bytes: int, dtype: torch.dtype
    ) -> int:
        """All weights for each new token, and in each step the keys and values so far."""
        seen = sum(prompt + made for made in range(1, new))
        return new * self.weights * dtype.itemsize + rows * seen * token_bytes


def llama_token_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers."""
    size = config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * size * dtype.itemsize
