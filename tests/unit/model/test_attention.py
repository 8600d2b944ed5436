"""Attention inside each example of a packed row against one example at a time in float64."""

from types import SimpleNamespace

import pytest
import torch

from weft.model import attention
from weft.model.attention import NotPackable, packed_attention
from weft.model.rows import Piece

PIECES = (Piece(2, 5, 3), Piece(1, 9, 3), Piece(1, 40, 1))
TOKENS = sum(piece.tokens for piece in PIECES)
HEADS, SIZE, SCALE = 4, 8, 0.3
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def rows_of(x_hTD):
    """The rows [h, l, D] of a packed row, one for each example and member."""
    rows, start = [], 0
    for piece in PIECES:
        part = x_hTD[:, start : start + piece.tokens]
        for example in part.unflatten(1, (piece.count, -1)).unbind(1):
            rows += [example[:, member :: piece.members] for member in range(piece.members)]
        start += piece.tokens
    return rows


def obvious(q, k, v, window):
    """What comes out of each row [l, H, D]."""
    found = []
    for q_HlD, k_GlD, v_GlD in zip(*(rows_of(x[0]) for x in (q, k, v)), strict=True):
        k_HlD, v_HlD = (x.repeat_interleave(HEADS // len(x), 0) for x in (k_GlD, v_GlD))
        length = q_HlD.shape[1]
        gap = torch.arange(length)[:, None] - torch.arange(length)
        unseen = (gap < 0) | (gap >= (window or length))
        scores_Hll = (q_HlD @ k_HlD.mT * SCALE).masked_fill(unseen, -torch.inf)
        found.append((scores_Hll.softmax(-1) @ v_HlD).transpose(0, 1))
    return found


def packed(q, k, v, window, dropout=0.0):
    out, _ = packed_attention(
        torch.nn.Module(),
        *(q, k, v),
        None,
        weft_rows=SimpleNamespace(pieces=PIECES, cache=None),
        scaling=SCALE,
        sliding_window=window,
        dropout=dropout,
    )
    return rows_of(out[0].transpose(0, 1))


@pytest.fixture
def made():
    """Queries of 4 heads, and keys and values of so many."""
    generator = torch.Generator().manual_seed(0)

    def make(kv_heads, dtype):
        shapes = [(1, TOKENS, heads, SIZE) for heads in (HEADS, kv_heads, kv_heads)]
        drawn = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        return [x.transpose(1, 2) for x in drawn]

    return make


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("short", [9, 256], ids=lambda short: f"short up to {short}")
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_values_and_gradients_are_those_of_float64(
    kv_heads, window, short, dtype, made, monkeypatch
):
    monkeypatch.setattr(attention, "SHORT", short)
    ours = [x.requires_grad_() for x in made(kv_heads, dtype)]
    exact = [x.detach().double().requires_grad_() for x in ours]
    for found, wanted in zip(packed(*ours, window), obvious(*exact, window), strict=True):
        weight = torch.linspace(-1, 1, wanted.numel()).view(wanted.shape).to(dtype)
        out = found.transpose(0, 1)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), wanted, rtol=0, atol=4 * ROUNDING[dtype])
        (out * weight).sum().backward(retain_graph=True)
        (wanted * weight).sum().backward(retain_graph=True)
    for x, reference in zip(ours, exact, strict=True):
        bound = ROUNDING[dtype] * reference.grad.abs().max().item()
        torch.testing.assert_close(x.grad.double(), reference.grad, rtol=0, atol=bound)


@pytest.mark.parametrize("window", [None, 6])
def test_in_16_bits_the_forward_is_pytorch_s_own_bit_by_bit(window, made):
    """So that a base in 16 bits says what it says in transformers."""
    q, k, v = made(2, torch.bfloat16)
    for found, *row in zip(
        packed(q, k, v, window), *(map(rows_of, (q[0], k[0], v[0]))), strict=True
    ):
        mask = attention.window_mask(row[0].shape[1], window, torch.device("cpu"))
        wanted = torch.nn.functional.scaled_dot_product_attention(
            *(x[None] for x in row),
            attn_mask=mask,
            is_causal=mask is None,
            scale=SCALE,
            enable_gqa=True,
        )
        assert torch.equal(found, wanted[0])


def test_dropout_of_attention_is_drawn_and_reaches_the_gradient(made):
    ours = [x.requires_grad_() for x in made(4, torch.float32)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kept, other = packed(*ours, None, dropout=0.5), packed(*ours, None, dropout=0.5)
    assert not torch.equal(kept[-1], other[-1])
    kept[-1].sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in ours)


def test_what_packed_attention_does_not_do_is_refused(made):
    q, k, v = made(4, torch.float32)
    rows = SimpleNamespace(pieces=PIECES, cache=None)
    with pytest.raises(NotPackable, match="softcap"):
        packed_attention(torch.nn.Module(), q, k, v, None, weft_rows=rows, softcap=30.0)
    with pytest.raises(NotPackable, match="attention_mask"):
        packed_attention(torch.nn.Module(), q, k, v, torch.zeros(1), weft_rows=rows)
