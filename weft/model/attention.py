"""Causal attention inside each example of a packed row, in place of transformers' own.

Registered with transformers' attention interface, so every architecture that uses the interface
keeps its own code for everything else. Shapes: T positions of the packed row, H query heads,
G key/value heads, D head size; a piece is k examples x l positions x N members.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from weft.model.rows import PackedRows, Piece

NAME = "weft_packed"


class NotPackable(RuntimeError):
    """The model asks for something that packed attention does not do."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, G, T, D]
    value: torch.Tensor,  # [1, G, T, D]
    attention_mask: torch.Tensor | None,
    *,
    weft_rows: PackedRows,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """Attention output [1, T, H, D], each example attending to itself only."""
    asked = [n for n in ("softcap", "s_aux", "position_bias") if extra.get(n) is not None]
    if attention_mask is not None:
        asked.append("attention_mask")
    if asked or not getattr(module, "is_causal", True):
        raise NotPackable(f"{type(module).__name__} asks for {asked or 'non-causal attention'}")
    cache, layer = weft_rows.cache, getattr(module, "layer_idx", 0)
    if cache is not None and cache.filled:
        q, k, v = map(_tokens, (query, key, value))  # [B, H or G, D]
        return cache.attend(layer, q, k, v, scaling, sliding_window)[None], None
    sizes = [piece.tokens for piece in weft_rows.pieces]
    parts, row = [], 0
    for piece, q, k, v in zip(
        weft_rows.pieces, *(_tokens(x).split(sizes) for x in (query, key, value)), strict=True
    ):
        mask = window_mask(piece.length, sliding_window, query.device)
        keys, values = _rows(k, piece), _rows(v, piece)
        if cache is not None:
            cache.store(layer, row, keys, values)
        out = scaled_dot_product_attention(
            _rows(q, piece),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        parts.append(_stream(out, piece))
        row += piece.count * piece.members
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


def _tokens(x_1HTD: torch.Tensor) -> torch.Tensor:
    """[1, H, T, D] to [T, H, D], as it lies in memory: splits and joins of tokens are cheap."""
    return x_1HTD.squeeze(0).transpose(0, 1)


def _rows(x_tHD: torch.Tensor, piece: Piece) -> torch.Tensor:
    """[k*l*N, H, D] to [k*N, H, l, D]."""
    x = x_tHD.unflatten(0, (piece.count, piece.length, piece.members))
    return x.permute(0, 2, 3, 1, 4).flatten(0, 1)


def _stream(x_RHlD: torch.Tensor, piece: Piece) -> torch.Tensor:
    """[k*N, H, l, D] to [k*l*N, H, D]."""
    x = x_RHlD.unflatten(0, (piece.count, piece.members))
    return x.permute(0, 3, 1, 2, 4).flatten(0, 2)


def window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """Which keys each query of a text sees [l, l]; None where that is all before it."""
    if window is None or length <= window:
        return None
    gap = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (gap >= 0) & (gap < window)


AttentionInterface.register(NAME, packed_attention)


@contextmanager
def counted_calls() -> Iterator[list[str]]:
    """Within this context, the names of the modules that call packed attention."""
    names: list[str] = []

    def counting(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        names.append(type(module).__name__)
        return packed_attention(module, *args, **kwargs)

    AttentionInterface.register(NAME, counting)
    try:
        yield names
    finally:
        AttentionInterface.register(NAME, packed_attention)
