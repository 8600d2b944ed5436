"""Causal attention inside each example of a packed row, in place of transformers' own.

Registered with transformers' attention interface, so every architecture that uses the interface
keeps its own code for everything else. Shapes: T positions of the packed row, H query heads,
G key/value heads, h heads of either kind, D head size; a piece is k examples x l positions x
N members, R = k * N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from weft.model.rows import PackedRows, Piece

NAME = "weft_packed"
SHORT = 256
"""Up to this length the backward pass on a CPU is in fp32 whatever the base's dtype. It takes 32
positions at a time, and so small a product costs more to start in bf16 than to compute."""


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
    q_THD, k_TGD, v_TGD = map(_tokens, (query, key, value))
    if cache is not None and cache.filled:
        return cache.attend(layer, q_THD, k_TGD, v_TGD, scaling, sliding_window)[None], None
    if cache is not None:
        row = 0
        for piece, k, v in _split(weft_rows.pieces, k_TGD, v_TGD):
            cache.store(layer, row, _rows(k, piece), _rows(v, piece))
            row += piece.count * piece.members
    fused = query.device.type == "cpu" and not dropout and query.shape[-1] == value.shape[-1]
    causal = Causal(weft_rows.pieces, scaling, sliding_window)
    if fused:
        out_THD = _Attend.apply(q_THD, k_TGD, v_TGD, causal)
    else:
        out_THD = _attend(q_THD, k_TGD, v_TGD, causal, dropout)
    return out_THD[None], None


@dataclass(frozen=True, eq=False)
class Causal:
    """Who attends to whom, and the factor of the scores (None: by the head size)."""

    pieces: Sequence[Piece]
    scaling: float | None
    window: int | None


def _attend(
    q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, causal: Causal, dropout: float
) -> torch.Tensor:
    """What each position makes of the values up to it in its own example [T, H, D]."""
    parts = []
    for piece, q, k, v in _split(causal.pieces, q_THD, k_TGD, v_TGD):
        mask = window_mask(piece.length, causal.window, q.device)
        out_RHlD = scaled_dot_product_attention(
            _rows(q, piece),
            _rows(k, piece),
            _rows(v, piece),
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=dropout,
            scale=causal.scaling,
            enable_gqa=q_THD.shape[1] != k_TGD.shape[1],
        )
        x = out_RHlD.unflatten(0, (piece.count, piece.members))
        parts.append(x.permute(0, 3, 1, 2, 4).flatten(0, 2))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Attend(torch.autograd.Function):
    """The same by the CPU's fused kernels, without dropout.

    Autograd would cut the rows out of the stream and join their gradients again, each three times;
    here they are read where they lie, and written where they go. What is kept for the backward
    pass is in the dtype of the base.
    """

    @staticmethod
    def forward(
        ctx: Any, q_THD: torch.Tensor, k_TGD: torch.Tensor, v_TGD: torch.Tensor, causal: Causal
    ) -> torch.Tensor:
        """[T, H, D]."""
        out_THD = q_THD.new_empty(q_THD.shape)
        logsums = []
        for piece, out, *qkv in _split(causal.pieces, out_THD, q_THD, k_TGD, v_TGD):
            how = _how(piece, causal, out.dtype)
            out_RHlD, logsum_RHl = _FUSED(*(_rows(x, piece) for x in qkv), **how)
            _write(out, piece, out_RHlD)
            logsums.append(logsum_RHl)
        ctx.save_for_backward(q_THD, k_TGD, v_TGD, out_THD, *logsums)
        ctx.causal = causal
        return out_THD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of q, k and v."""
        q_THD, k_TGD, v_TGD, out_THD, *logsums = ctx.saved_tensors
        causal = ctx.causal
        found = [x.new_empty(x.shape) for x in (q_THD, k_TGD, v_TGD)]
        parts = _split(causal.pieces, *found, grads[0], q_THD, k_TGD, v_TGD, out_THD)
        for logsum_RHl, (piece, dq, dk, dv, *given) in zip(logsums, parts, strict=True):
            dtype = dq.dtype
            if piece.length <= SHORT:
                dtype = torch.promote_types(dtype, torch.float32)
            how = _how(piece, causal, dtype)
            read = (_rows(x, piece).to(dtype) for x in given)
            made = _FUSED_BACKWARD(*read, logsum_RHl, **how)
            for into, dx_RhlD in zip((dq, dk, dv), made, strict=True):
                _write(into, piece, dx_RhlD)
        return (*found, None)


_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _how(piece: Piece, causal: Causal, dtype: torch.dtype) -> dict[str, Any]:
    """What the fused kernels want to know."""
    seen_ll = window_mask(piece.length, causal.window, torch.device("cpu"))
    mask_ll = None
    if seen_ll is not None:
        mask_ll = torch.zeros(seen_ll.shape, dtype=dtype).masked_fill_(~seen_ll, -torch.inf)
    return {
        "dropout_p": 0.0,
        "is_causal": mask_ll is None,
        "attn_mask": mask_ll,
        "scale": causal.scaling,
    }


def _write(into_thD: torch.Tensor, piece: Piece, x_RhlD: torch.Tensor) -> None:
    """The way back from `_rows`."""
    _grid(into_thD, piece).copy_(x_RhlD.unflatten(0, (piece.count, piece.members)))


def _split(pieces: Sequence[Piece], *streams: torch.Tensor) -> Iterator[tuple[Any, ...]]:
    """Each piece with its tokens of each stream."""
    sizes = [piece.tokens for piece in pieces]
    return zip(pieces, *(x_ThD.split(sizes) for x_ThD in streams), strict=True)


def _tokens(x_1HTD: torch.Tensor) -> torch.Tensor:
    """[1, H, T, D] to [T, H, D], as it lies in memory: splits and joins of tokens are cheap."""
    return x_1HTD.squeeze(0).transpose(0, 1)


def _rows(x_thD: torch.Tensor, piece: Piece) -> torch.Tensor:
    """[k*l*N, h, D] to [k*N, h, l, D]."""
    return _grid(x_thD, piece).flatten(0, 1)


def _grid(x_thD: torch.Tensor, piece: Piece) -> torch.Tensor:
    """[k*l*N, h, D] as a view [k, N, h, l, D]."""
    return x_thD.unflatten(0, (piece.count, piece.length, piece.members)).permute(0, 2, 3, 1, 4)


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
