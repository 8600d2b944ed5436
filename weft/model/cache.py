"""Keys and values of a decode, preallocated, one row for each (prompt, member).

Shapes: B rows, G key/value heads, C cache length, D head size, H query heads.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention


class KVCache:
    """Filled by one prefill, then extended by one position a row and step."""

    def __init__(self, lengths_B: torch.Tensor, capacity: int) -> None:
        """`lengths_B` are the prompts' lengths; `capacity` is C."""
        self.lengths_B = lengths_B
        self.capacity = capacity
        self.filled = False
        self._keys: dict[int, torch.Tensor] = {}  # layer to [B, G, C, D]
        self._values: dict[int, torch.Tensor] = {}

    def store(self, layer: int, start: int, k_bGlD: torch.Tensor, v_bGlD: torch.Tensor) -> None:
        """Prefill: rows start.. of a layer get their prompt's keys and values."""
        for into, x in ((self._keys, k_bGlD), (self._values, v_bGlD)):
            if layer not in into:
                shape = (len(self.lengths_B), x.shape[1], self.capacity, x.shape[3])
                into[layer] = x.new_zeros(shape)
            into[layer][start : start + len(x), :, : x.shape[2]] = x

    def attend(
        self,
        layer: int,
        q_BH1D: torch.Tensor,
        k_BGD: torch.Tensor,
        v_BGD: torch.Tensor,
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Append one position to every row and attend to the row's history: [B, H, 1, D]."""
        keys, values = self._keys[layer], self._values[layer]
        row_B = torch.arange(len(keys), device=keys.device)
        keys[row_B, :, self.lengths_B] = k_BGD
        values[row_B, :, self.lengths_B] = v_BGD
        used = int(self.lengths_B.max()) + 1
        place_C = torch.arange(used, device=keys.device)
        mask_BC = place_C <= self.lengths_B[:, None]
        if window is not None:
            mask_BC &= place_C > self.lengths_B[:, None] - window
        return scaled_dot_product_attention(
            q_BH1D,
            keys[:, :, :used],
            values[:, :, :used],
            attn_mask=mask_BC[:, None, None],
            scale=scaling,
            enable_gqa=q_BH1D.shape[1] != keys.shape[1],
        )

    def advance(self, live_B: torch.Tensor) -> None:
        """The step is over in every layer; rows that are not live will write their place again."""
        self.lengths_B = self.lengths_B + live_B

    def keep(self, rows: torch.Tensor) -> None:
        """Only these rows go on, in this order."""
        self.lengths_B = self.lengths_B[rows]
        for part in (self._keys, self._values):
            for layer, x in part.items():
                part[layer] = x[rows]
