"""Keys and values of a decode, preallocated, one row for each (prompt, member).

Shapes: B rows, G key/value heads, C cache length, D head size, H query heads, q query heads that
share a key head, c positions that a step sees, R = B * G key/value heads of all rows.
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
            keys.select(2, self.lengths[0]).copy_(k_BGD)
            values.select(2, self.lengths[0]).copy_(v_BGD)
        else:
            row_B = torch.arange(len(self.lengths), device=self.device)
            keys[row_B, :, self.lengths_B] = k_BGD
            values[row_B, :, self.lengths_B] = v_BGD
        stop = max(self.lengths) + 1
        start = 0 if window is None else max(0, min(self.lengths) + 1 - window)
        mask_B11c = self._mask(start, stop, window, q_BHD.dtype)
        kv_heads = k_BGD.shape[1]
        # the query heads that share a key head are queries of one attention
        if q_BHD.dtype != torch.float32 or self.device.type != "cpu":
            out_BGqD = scaled_dot_product_attention(
                q_BHD.unflatten(1, (kv_heads, -1)),
                keys[:, :, start:stop],
                values[:, :, start:stop],
                attn_mask=mask_B11c,
                scale=scaling,
            )
            return out_BGqD.flatten(1, 2)
        q_RqD = q_BHD.reshape(len(q_BHD) * kv_heads, -1, q_BHD.shape[2])
        k_RcD = keys.flatten(0, 1)[:, start:stop]
        if mask_B11c is not None:
            mask_B11c = mask_B11c.expand(-1, kv_heads, -1, -1).flatten(0, 1)
        weight_Rqc = _weights(q_RqD, k_RcD, mask_B11c, scaling)
        return self._weighted(weight_Rqc, values.flatten(0, 1), start).view(q_BHD.shape)

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
        self, weight_Rqc: torch.Tensor, values_RCD: torch.Tensor, start: int
    ) -> torch.Tensor:
        """The sum of the values from `start` on, by these weights: [R * q, D], or [R, q, D].

        Of many heads a lookup reads them in half the time of a batched product, which is made for
        larger matrices.
        """
        heads, queries, seen = weight_Rqc.shape
        if heads < MANY_HEADS:
            return torch.bmm(weight_Rqc, values_RCD[:, start : start + seen])
        if start not in self._places:
            head_R11 = torch.arange(heads, dtype=torch.int32)[:, None, None] * self.capacity
            place_c = torch.arange(start, start + seen, dtype=torch.int32)
            self._places[start] = (head_R11 + place_c).expand(-1, queries, -1).flatten(0, 1)
        return embedding_bag(
            self._places[start],
            values_RCD.flatten(0, 1),
            per_sample_weights=weight_Rqc.flatten(0, 1),
            mode="sum",
        )


def _weights(
    q_RqD: torch.Tensor,
    k_RcD: torch.Tensor,
    mask_R1c: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """What each query takes of each position [R, q, c].

    For so few queries a product and a softmax take less time than the fused kernel.
    """
    scores_Rqc = torch.baddbmm(
        q_RqD.new_empty(()) if mask_R1c is None else mask_R1c,  # of which nothing is read
        q_RqD,
        k_RcD.transpose(1, 2),
        alpha=q_RqD.shape[-1] ** -0.5 if scaling is None else scaling,
        beta=0 if mask_R1c is None else 1,
    )
    return scores_Rqc.softmax(-1)
