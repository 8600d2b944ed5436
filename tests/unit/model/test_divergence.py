"""Divergences against their definitions, computed the slow way in float64."""

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from weft.model.divergence import divergence


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 40, generator=generator) * 4 for _ in range(2)]


def test_matches_scipy(logits):
    found = divergence(*logits)
    a, b = (x.double().softmax(-1).numpy() for x in logits)
    for s in range(6):
        assert found.kl_ab[s].item() == pytest.approx(entropy(a[s], b[s]), rel=1e-5)
        assert found.kl_ba[s].item() == pytest.approx(entropy(b[s], a[s]), rel=1e-5)
        assert found.js[s].item() == pytest.approx(jensenshannon(a[s], b[s]) ** 2, rel=1e-5)
        l2 = (logits[0][s] - logits[1][s]).double().norm().item()
        assert found.l2[s].item() == pytest.approx(l2, rel=1e-6)
        assert found.agree[s].item() == (a[s].argmax() == b[s].argmax())


def test_equal_logits_are_at_distance_zero(logits):
    found = divergence(logits[0], logits[0])
    for name in ("kl_ab", "kl_ba", "l2"):
        assert (getattr(found, name) == 0).all()
    assert (found.js < 1e-6).all()
    assert found.agree.all()


def test_impossible_tokens_give_finite_numbers():
    """Probabilities that underflow to zero are where a naive p * log(p / q) gives NaN."""
    a = torch.tensor([[0.0, 500.0]])
    b = torch.tensor([[500.0, 0.0]])
    found = divergence(a, b)
    assert found.kl_ab.item() == pytest.approx(500)
    assert found.js.item() == pytest.approx(math.log(2))


def test_half_precision_is_compared_in_fp32(logits):
    a, b = (x.to(torch.bfloat16) for x in logits)
    assert torch.equal(divergence(a, b).kl_ab, divergence(a.float(), b.float()).kl_ab)
