"""Keys and values of a decode, preallocated, one row for each (prompt, member).

Shapes: B rows, G key/value heads, C cache length, D head size, H query heads, q query heads that
share a key head, c positions that a step sees, R = B * G * q attentions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import embedding_bag, scaled_dot_product_attention
from transformers import PretrainedConfig

MANY_HEADS = 32
"""From so many heads of all rows on, values are looked up and added instead of multiplied."""


def token_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """What one position of a text takes: in every layer, and in one of them twice.

    When rows leave, the cache is copied layer by layer.
    """
    config = config.get_text_config()
    heads: int = config.num_attention_heads
    size: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
    return (2 * config.num_hidden_layers + 1) * kv_heads * size * dtype.itemsize


class KVCache:
    """Filled by one prefill, then extended by one position a row and step."""

    def __init__(self, lengths: Sequence[int], capacity: int, device: torch.device) -> None:
        """`lengths` are the prompts' lengths, one a row; `capacity` is C."""
        self.lengths = list(lengths)
        self.capacity = capacity
        self.device = device
        self.began = 0
        """Rows that the prefill has filled in every layer."""
        self.filled = False
        self._order_B = torch.tensor(sorted(range(len(lengths)), key=lengths.__getitem__))
        self._keys: dict[int, torch.Tensor] = {}  # layer to [B, G, C, D]
        self._values: dict[int, torch.Tensor] = {}
        self._begin()

    def store(self, layer: int, start: int, k_bGlD: torch.Tensor, v_bGlD: torch.Tensor) -> None:
        """Prefill: rows get their keys and values, the shortest first.

        `start` counts from the first row that is not filled yet.
        """
        first = self.began + start
        self.put(layer, self._order_B[first : first + len(k_bGlD)], k_bGlD, v_bGlD)

    def put(self, layer: int, rows: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """The beginning of these rows, of any shape: k and v are [*rows, G, l, D], or broadcast."""
        for into, x in ((self._keys, k), (self._values, v)):
            if layer not in into:
                shape = (len(self.lengths), x.shape[-3], self.capacity, x.shape[-1])
                into[layer] = x.new_zeros(shape)
            into[layer][rows, :, : x.shape[-2]] = x

    def attend(
        self,
        layer: int,
        q_BHD: torch.Tensor,
        k_BGD: torch.Tensor,
        v_BGD: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Append one position to every row and attend to the row's history: [B, H, D]."""
        keys, values = self._keys[layer], self._values[layer]
        if self._uniform:
            keys[:, :, self.lengths[0]] = k_BGD
            values[:, :, self.lengths[0]] = v_BGD
        else:
            keys[self._row_B, :, self.lengths_B] = k_BGD
            values[self._row_B, :, self.lengths_B] = v_BGD
        stop = max(self.lengths) + 1
        start = 0 if window is None else max(0, min(self.lengths) + 1 - window)
        # the query heads that share a key head are queries of one attention
        q_BGqD = q_BHD.unflatten(1, (k_BGD.shape[1], -1))
        k_BGcD, mask_B11c = keys[:, :, start:stop], self._mask(start, stop, window, q_BHD.dtype)
        if q_BHD.dtype != torch.float32 or self.device.type != "cpu":
            out_BGqD = scaled_dot_product_attention(
                q_BGqD, k_BGcD, values[:, :, start:stop], attn_mask=mask_B11c, scale=scaling
            )
        else:
            weight_BGqc = _weights(q_BGqD, k_BGcD, mask_B11c, scaling)
            out_BGqD = self._weighted(weight_BGqc, values, start)
        return out_BGqD.flatten(1, 2)

    def advance(self, live_B: Sequence[bool]) -> None:
        """The step is over in every layer; rows that are not live will write their place again."""
        self.lengths = [n + live for n, live in zip(self.lengths, live_B, strict=True)]
        self._begin()

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows go on, in this order."""
        at = torch.tensor(rows, device=self.device)
        self.lengths = [self.lengths[row] for row in rows]
        for part in (self._keys, self._values):
            for layer, x in part.items():
                part[layer] = x[at]
        self._begin()

    def _begin(self) -> None:
        """What all layers of a step share."""
        self.lengths_B = torch.tensor(self.lengths, device=self.device)
        self._uniform = len(set(self.lengths)) == 1
        self._row_B = torch.arange(len(self.lengths), device=self.device)
        self._masks: dict[int | None, torch.Tensor] = {}
        self._places: dict[int, torch.Tensor] = {}

    def _mask(
        self, start: int, stop: int, window: int | None, dtype: torch.dtype
    ) -> torch.Tensor | None:
        """What is added to scores [B, 1, 1, stop - start]; None where every row sees all."""
        if self._uniform:
            return None
        if window not in self._masks:
            place_C = torch.arange(start, stop, device=self.device)
            out_BC = place_C > self.lengths_B[:, None]
            if window is not None:
                out_BC |= place_C <= self.lengths_B[:, None] - window
            mask_BC = torch.zeros(out_BC.shape, dtype=dtype, device=self.device)
            self._masks[window] = mask_BC.masked_fill_(out_BC, -torch.inf)[:, None, None]
        return self._masks[window]

    def _weighted(
        self, weight_BGqc: torch.Tensor, values_BGCD: torch.Tensor, start: int
    ) -> torch.Tensor:
        """The sum of the values from `start` on, by these weights: [B, G, q, D].

        Of many heads a lookup reads them in half the time of a batched product, which is made for
        larger matrices.
        """
        heads, (queries, seen) = weight_BGqc.shape[:2].numel(), weight_BGqc.shape[2:]
        if heads < MANY_HEADS:
            return weight_BGqc @ values_BGCD[:, :, start : start + seen]
        if start not in self._places:
            head_G11 = torch.arange(heads, dtype=torch.int32)[:, None, None] * self.capacity
            place_c = torch.arange(start, start + seen, dtype=torch.int32)
            self._places[start] = (head_G11 + place_c).expand(-1, queries, -1).flatten(0, 1)
        sum_RD = embedding_bag(
            self._places[start],
            values_BGCD.flatten(0, 2),
            per_sample_weights=weight_BGqc.flatten(0, 2),
            mode="sum",
        )
        return sum_RD.view(*weight_BGqc.shape[:3], -1)


def _weights(
    q_BGqD: torch.Tensor,
    k_BGcD: torch.Tensor,
    mask_B11c: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """What each query takes of each position [B, G, q, c].

    For so few queries a product and a softmax take less time than the fused kernel.
    """
    q_BGqD = q_BGqD * (q_BGqD.shape[-1] ** -0.5 if scaling is None else scaling)
    scores_BGqc = q_BGqD @ k_BGcD.transpose(2, 3)
    if mask_B11c is not None:
        scores_BGqc += mask_B11c
    return scores_BGqc.softmax(-1)
