"""Gradients: against autograd on merged weights, split over forwards, and lane by lane."""

import pytest
import torch

from weft.core.keys import Key
from weft.engines.scorer import LocalScorer
from weft.model.config import AdapterConfig
from weft.model.sites import choose_sites


def setup(make_base, architecture="llama", lanes=1, **engine):
    base = make_base(architecture)
    layout = choose_sites(base.sites, AdapterConfig(rank=3))
    theta_LP = torch.randn(lanes, layout.size, generator=torch.Generator().manual_seed(1)) * 0.1
    return LocalScorer(base, layout, **engine), theta_LP


def gradient(engine, theta_LP, batches, seed=0):
    keys = [Key.of(seed + lane) for lane in range(len(batches))]
    return engine.gradient(theta_LP, batches, keys)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "bloom"])
def test_gradient_matches_finite_differences_of_the_loss(architecture, make_base, batch):
    engine, theta_LP = setup(make_base, architecture)
    found = gradient(engine, theta_LP, [batch])
    direction_P = torch.randn(theta_LP.shape[1], generator=torch.Generator().manual_seed(2))
    step = 1e-3 * direction_P
    up, down = (gradient(engine, theta_LP + sign * step, [batch]).loss_L[0] for sign in (1, -1))
    slope = (found.gradient_LP[0] @ direction_P).item()
    assert (up - down) / 2e-3 == pytest.approx(slope, rel=5e-3)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_accumulation_over_forwards_is_the_whole_batch_gradient(
    architecture, dropout, rows, make_base, batch
):
    """Rows differ in length: a mean of means would be another number."""
    whole, theta_LP = setup(make_base, architecture, dropout=dropout)
    pieces, _ = setup(make_base, architecture, dropout=dropout, rows_per_forward=rows)
    expected, found = (gradient(e, theta_LP, [batch]) for e in (whole, pieces))
    torch.testing.assert_close(found.gradient_LP, expected.gradient_LP, rtol=1e-4, atol=1e-7)
    assert found.loss_L == pytest.approx(expected.loss_L, rel=1e-6)


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.3}, {"members_per_forward": 2}])
@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_lanes_train_as_if_alone(architecture, settings, make_base, make_batch):
    engine, theta_LP = setup(make_base, architecture, lanes=3, **settings)
    batches = [make_batch(seed, rows=3 + seed) for seed in range(3)]
    together = gradient(engine, theta_LP, batches)
    for lane in range(3):
        alone = gradient(engine, theta_LP[lane : lane + 1], [batches[lane]], seed=lane)
        torch.testing.assert_close(
            together.gradient_LP[lane], alone.gradient_LP[0], rtol=1e-4, atol=1e-7
        )
        assert together.loss_L[lane] == pytest.approx(alone.loss_L[0], rel=1e-6)


def test_dropout_is_the_key_s_and_nothing_else_s(make_base, batch):
    engine, theta_LP = setup(make_base, dropout=0.5)
    once, again, other = (gradient(engine, theta_LP, [batch], seed=s) for s in (4, 4, 5))
    torch.testing.assert_close(once.gradient_LP, again.gradient_LP, rtol=0, atol=0)
    assert not torch.allclose(once.gradient_LP, other.gradient_LP)
    global_state = torch.get_rng_state()
    gradient(engine, theta_LP, [batch])
    assert torch.equal(global_state, torch.get_rng_state())


def test_the_base_s_own_dropout_is_a_choice(make_base, batch):
    quiet, theta_LP = setup(make_base, "gpt2")
    noisy, _ = setup(make_base, "gpt2", base_dropout=True)
    expected = gradient(quiet, theta_LP, [batch]).loss_L[0]
    once, again, other = (gradient(noisy, theta_LP, [batch], seed=s).loss_L[0] for s in (4, 4, 5))
    assert once == again
    assert len({once, other, expected}) == 3
    assert not noisy.base.model.training


def test_layers_below_the_first_adapted_one_take_no_part_in_backward(make_base, batch):
    """Their activations need no gradient, so autograd stops above them by itself."""
    base = make_base("llama")
    layout = choose_sites(base.sites, AdapterConfig(rank=2, layers="last 1"))
    seen = []
    lower = base.model.model.layers[0]
    handle = lower.register_forward_hook(lambda m, a, y: seen.append(y.requires_grad))
    theta_LP = torch.zeros(1, layout.size)
    gradient(LocalScorer(base, layout), theta_LP, [batch])
    handle.remove()
    assert seen == [False]


def test_a_large_batch_in_half_precision_does_not_underflow(make_model, make_batch):
    from weft.model.base import prepare

    batch = make_batch(0, rows=400)
    gradients = {}
    for dtype in (torch.float32, torch.float16):
        base = prepare("llama", make_model("llama").to(dtype), NoTokenizer())
        layout = choose_sites(base.sites, AdapterConfig(rank=3))
        theta_LP = torch.randn(1, layout.size, generator=torch.Generator().manual_seed(1)) * 0.1
        gradients[dtype] = gradient(LocalScorer(base, layout), theta_LP, [batch]).gradient_LP
    exact, half = gradients[torch.float32], gradients[torch.float16]
    assert (half - exact).norm() / exact.norm() < 0.01


class NoTokenizer:
    pad_token_id = None
    eos_token_id = 1
