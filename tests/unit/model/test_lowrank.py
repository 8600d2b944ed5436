"""The in-place update against the obvious formula, values and gradients, with autograd's own."""

import pytest
import torch

from weft.model.lowrank import AddLowRank, Plan

I, O, RANK, KEEP = 7, 5, 3, 0.75  # noqa: E741
BLOCKS = [(0, 2, 4), (2, 3, 6)]  # members start..stop-1, each with this many positions


def views(x_TC):
    sizes = [(stop - start) * positions for start, stop, positions in BLOCKS]
    return [
        part.unflatten(0, (positions, stop - start)).transpose(0, 1)
        for part, (start, stop, positions) in zip(x_TC.split(sizes), BLOCKS, strict=True)
    ]


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    total = sum((stop - start) * positions for start, stop, positions in BLOCKS)
    shapes = [(total, O), (total, I), (3, RANK, I), (3, O, RANK)]
    y, x, a, b = (torch.randn(s, generator=generator) for s in shapes)
    keep = [torch.rand(n, I, generator=generator) < KEEP for *_, n in BLOCKS]
    scale = torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1)
    return [y.to(dtype), x.to(dtype), a, b], scale, keep


def obvious(y, x, a, b, scale, keep):
    parts = []
    for number, (y_NMO, x_NMI, (start, stop, _)) in enumerate(
        zip(views(y), views(x), BLOCKS, strict=True)
    ):
        seen = x_NMI.float() * keep[number] / KEEP if keep else x_NMI.float()
        delta = scale[start:stop] * (seen @ a[start:stop].mT) @ b[start:stop].mT
        parts.append((y_NMO.float() + delta).to(y.dtype).transpose(0, 1).flatten(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matches_the_formula(dropped, dtype):
    inputs, scale, keep = tensors(dtype)
    keep = keep if dropped else None
    plan = Plan(views, [b[:2] for b in BLOCKS], scale, keep, KEEP if dropped else 1.0)
    ours, theirs = ([t.clone().requires_grad_() for t in inputs] for _ in range(2))
    found = AddLowRank.apply(ours[0] * 1, *ours[1:], plan)
    expected = obvious(*theirs, scale, keep)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(found, expected, **tolerance)
    weight = torch.linspace(-1, 1, found.numel()).view(found.shape)
    for result in (found, expected):
        (result.float() * weight).sum().backward()
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.grad.dtype == mine.dtype
        torch.testing.assert_close(mine.grad, reference.grad, **tolerance)


def test_what_needs_no_gradient_gets_none():
    inputs, scale, _ = tensors()
    plan = Plan(views, [b[:2] for b in BLOCKS], scale)
    y, x, a, b = inputs
    b = b.clone().requires_grad_()
    AddLowRank.apply(y, x, a, b, plan).sum().backward()
    assert x.grad is None
    assert a.grad is None
    assert b.grad is not None


def test_the_gradient_of_a_reshaped_output_is_passed_on_as_it_is():
    inputs, scale, _ = tensors()
    plan = Plan(views, [b[:2] for b in BLOCKS], scale)
    y, x, a, b = (t.requires_grad_() for t in inputs)
    reshaped = (y * 1).view(1, *y.shape)
    before = reshaped.grad_fn
    found = AddLowRank.apply(reshaped, x, a, b, plan)
    assert found.grad_fn.next_functions[0][0] is before  # and not CopySlices
    weight = torch.linspace(-1, 1, found.numel()).view(found.shape)
    found.mul_(2)  # as a model may with what its layer gave it
    (found * weight).sum().backward()
    torch.testing.assert_close(y.grad, 2 * weight[0])
