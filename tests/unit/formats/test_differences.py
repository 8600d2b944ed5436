"""What a certificate measures is what plain matrices say."""

from __future__ import annotations

import pytest
import torch

from weft.formats.differences import (
    merged_records,
    rounding_unit,
    site_records,
    update_difference,
)
from weft.formats.merged import merged_weights
from weft.model.adapter import Adapter, Layout, Site, Slot


def factors(seed, rank=3, outputs=20, inputs=15):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rank, inputs), (outputs, rank))
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-9])
def test_the_difference_of_updates_is_that_of_the_products(size):
    """Also far below what Grams resolve: the direct difference of the matrices is the reference."""
    a, b = factors(0)
    more_a, more_b = factors(1)
    other = (torch.cat([a, more_a]), torch.cat([b, size * more_b], dim=1))  # another rank, too
    whole = max(torch.linalg.norm(b @ a), torch.linalg.norm(other[1] @ other[0]))
    wanted = torch.linalg.norm(size * more_b @ more_a) / whole
    assert update_difference((a, b), other) == pytest.approx(float(wanted), rel=1e-5)


def test_the_same_update_in_other_factors_is_no_difference():
    a, b = factors(0)
    turn, _ = torch.linalg.qr(factors(1, 3, 3, 3)[0])
    assert update_difference((a, b), (turn @ a, b @ turn.T)) < 1e-14
    assert update_difference((a, b), (a, b)) == 0
    nothing = (a, torch.zeros_like(b))
    assert update_difference(nothing, nothing) == update_difference(nothing, None) == 0
    assert update_difference((a, b), None) == 1


def adapter(scale, values, rank=2):
    site = Site("model.layers.0.q_proj", "linear", 4, 5, 0)
    layout = Layout((Slot(site, rank, scale),))
    return Adapter(layout, values)


def test_a_scale_that_moved_into_b_is_the_same_update():
    values = torch.randn(18, generator=torch.Generator().manual_seed(0))
    moved = values.clone()
    moved[8:] *= 0.1
    (found,) = site_records(adapter(2.0, values), adapter(20.0, moved)).values()
    assert (found.source.scale, found.result.scale) == (2.0, 20.0)
    assert found.update_difference < 1e-7
    (wrong,) = site_records(adapter(2.0, values), adapter(20.0, values)).values()
    assert wrong.update_difference == pytest.approx(0.9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_rounding_explains_a_merge_and_no_place_that_was_forgotten(
    make_base, adapter_of, architecture, dtype
):
    base, merged = make_base(architecture), make_base(architecture)
    adapter = adapter_of([Slot(site, 2, 0.5) for site in base.sites.values()])
    weights = merged_weights(base, adapter, dtype)
    merged.model.load_state_dict(weights)
    for site in merged_records(base, merged, adapter, dtype).values():
        assert 0 < site.update_difference <= site.update_tolerance < 0.05
    forgotten, *_, swapped = base.sites
    plain = base.model.get_submodule(forgotten).weight
    merged.model.get_submodule(forgotten).weight.copy_(plain)
    merged.model.get_submodule(swapped).weight.mul_(-1)
    found = merged_records(base, merged, adapter, dtype)
    assert found[forgotten].update_difference == pytest.approx(1)
    wrong = [name for name, s in found.items() if s.update_difference > s.update_tolerance]
    assert wrong == [forgotten, swapped]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_unit_of_rounding_is_the_largest_error_of_one_number(dtype):
    numbers = 1 + torch.arange(2**16, dtype=torch.float64) / 2**16
    numbers = torch.cat([numbers, numbers.new_tensor([1 + rounding_unit(dtype) * (1 - 1e-6)])])
    errors = (numbers.to(getattr(torch, dtype)).double() - numbers).abs() / numbers
    assert 0.99 * rounding_unit(dtype) < errors.max() <= rounding_unit(dtype)
