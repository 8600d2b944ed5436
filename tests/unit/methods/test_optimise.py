"""Updates, clipping and schedules against torch and transformers."""

import pytest
import torch
import transformers

from weft.methods.config import OptimiserConfig
from weft.methods.optimise import Moments, clip, rate, update


def directions(steps=30):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 11, generator=generator) for _ in range(steps)]


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (
            OptimiserConfig(name="adamw", lr=1e-2, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6),
            lambda p: torch.optim.AdamW([p], 1e-2, (0.8, 0.95), 1e-6, weight_decay=0.1),
        ),
        (
            OptimiserConfig(name="sgd", lr=1e-2, momentum=0.9),
            lambda p: torch.optim.SGD([p], 1e-2, momentum=0.9),
        ),
        (OptimiserConfig(name="sgd", lr=1e-2), lambda p: torch.optim.SGD([p], 1e-2)),
    ],
    ids=["adamw", "momentum", "sgd"],
)
def test_updates_match_torch(config, reference):
    theta_LP = torch.linspace(-1, 1, 22).view(2, 11)
    parameter = torch.nn.Parameter(theta_LP.clone())
    optimiser = reference(parameter)
    moments = Moments.fresh(theta_LP)
    for direction_LP in directions():
        parameter.grad = direction_LP.clone()
        optimiser.step()
        theta_LP, moments = update(
            theta_LP, direction_LP, torch.full((2, 1), 1e-2), moments, config
        )
    torch.testing.assert_close(theta_LP, parameter.data, rtol=1e-6, atol=1e-7)


def test_each_lane_moves_at_its_own_rate():
    lr_L1 = torch.tensor([[1e-2], [0.0]])
    theta_LP = torch.ones(2, 11)
    moved_LP, _ = update(
        theta_LP, directions(1)[0], lr_L1, Moments.fresh(theta_LP), OptimiserConfig()
    )
    assert (moved_LP[0] != 1).all()
    assert (moved_LP[1] == 1).all()


def test_clipping_is_a_lane_s_own_and_matches_torch():
    direction_LP = torch.stack([torch.full((11,), 3.0), torch.full((11,), 1e-3)])
    clipped_LP, norm_L = clip(direction_LP, 1.0)
    parameter = torch.nn.Parameter(torch.zeros(11))
    parameter.grad = direction_LP[0].clone()
    norm = torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    torch.testing.assert_close(clipped_LP[0], parameter.grad)
    torch.testing.assert_close(clipped_LP[1], direction_LP[1])
    assert norm_L[0] == pytest.approx(norm.item())
    assert clip(direction_LP, None)[0] is direction_LP


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("ratio", [0.0, 0.13])
def test_schedules_match_transformers(schedule, ratio):
    name = "constant_with_warmup" if schedule == "constant" else schedule
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    warmup = transformers.TrainingArguments(warmup_steps=ratio, use_cpu=True).get_warmup_steps(50)
    scheduler = transformers.get_scheduler(name, optimiser, warmup, 50)
    config = OptimiserConfig(schedule=schedule, warmup_ratio=ratio)
    for step in range(50):
        assert rate(config, step, 50) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimiser.step()
        scheduler.step()
