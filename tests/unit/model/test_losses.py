"""The fused head equals cross-entropy over whole logits, value and gradient, for any chunk size."""

import pytest
import torch

from weft.model import losses
from weft.model.losses import HeadNLL, head_scores


@pytest.fixture(params=[1, 7, 10_000], ids=lambda n: f"{n} at a time")
def data(request, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden_SD = torch.randn(23, 8, generator=generator, dtype=torch.float64)
    weight_VD = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    bias_V = torch.randn(50, generator=generator, dtype=torch.float64)
    token_S = torch.randint(50, (23,), generator=generator)
    monkeypatch.setattr(losses, "CHUNK_NUMBERS", 50 * request.param)
    monkeypatch.setattr(losses, "PART_TOKENS", request.param)
    monkeypatch.setattr(losses, "PART_TARGETS", 2 * request.param)
    return hidden_SD.float(), weight_VD.float(), bias_V.float(), token_S


@pytest.mark.parametrize("with_bias", [True, False])
def test_head_nll_matches_cross_entropy(data, with_bias):
    hidden_SD, weight_VD, bias_V, token_S = data
    bias_V = bias_V if with_bias else None
    weights_S = torch.linspace(0.5, 2, 23)
    fast_SD = hidden_SD.clone().requires_grad_()
    fast_S = HeadNLL.apply(fast_SD, weight_VD, bias_V, token_S)
    (fast_S * weights_S).sum().backward()
    slow_SD = hidden_SD.clone().requires_grad_()
    logits_SV = torch.nn.functional.linear(slow_SD, weight_VD, bias_V)
    slow_S = torch.nn.functional.cross_entropy(logits_SV, token_S, reduction="none")
    (slow_S * weights_S).sum().backward()
    torch.testing.assert_close(fast_S, slow_S)
    torch.testing.assert_close(fast_SD.grad, slow_SD.grad)


def test_scores_match_the_loss_and_count_hits(data):
    hidden_SD, weight_VD, bias_V, token_S = data
    nll_S, correct_S = head_scores(hidden_SD, weight_VD, bias_V, token_S)
    torch.testing.assert_close(nll_S, HeadNLL.apply(hidden_SD, weight_VD, bias_V, token_S))
    best_S = torch.nn.functional.linear(hidden_SD, weight_VD, bias_V).argmax(-1)
    assert correct_S.tolist() == (best_S == token_S).tolist()


def test_without_a_need_for_gradients_none_are_formed(data):
    hidden_SD, weight_VD, bias_V, token_S = data
    assert not HeadNLL.apply(hidden_SD, weight_VD, bias_V, token_S).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_far_apart_are_summed_without_overflow(data, dtype):
    """Whatever part of the vocabulary holds the largest, and where some tokens are ruled out."""
    hidden_SD, weight_VD, bias_V, token_S = data
    bias_V = bias_V.clone()
    bias_V[:9] = -torch.inf
    bias_V[40] = 200.0
    token_S = token_S.clamp(min=9)
    fast_SD = hidden_SD.to(dtype).requires_grad_()
    weight_VD, bias_V = weight_VD.to(dtype), bias_V.to(dtype)
    fast_S = HeadNLL.apply(fast_SD, weight_VD, bias_V, token_S)
    fast_S.sum().backward()
    exact_SD = fast_SD.detach().double().requires_grad_()
    logits_SV = torch.nn.functional.linear(exact_SD, weight_VD.double(), bias_V.double())
    exact_S = torch.nn.functional.cross_entropy(logits_SV, token_S, reduction="none")
    exact_S.sum().backward()
    close = 1e-4 if dtype == torch.float32 else 2.0  # 200 in bf16 is within a half of itself
    torch.testing.assert_close(fast_S.double(), exact_S, rtol=0, atol=close)
    rounding = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(fast_SD.grad.double(), exact_SD.grad, rtol=0, atol=rounding)


def test_no_target_is_no_loss(data):
    hidden_SD, weight_VD, _, token_S = data
    empty_0D = hidden_SD[:0].clone().requires_grad_()
    nll_0 = HeadNLL.apply(empty_0D, weight_VD, None, token_S[:0])
    nll_0.sum().backward()
    assert nll_0.shape == (0,)
    assert empty_0D.grad.shape == empty_0D.shape
