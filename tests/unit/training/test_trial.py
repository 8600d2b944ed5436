"""The logits that certificates compare are those of plain forwards."""

from __future__ import annotations

import math

import pytest
import torch

from weft.core.batch import Example
from weft.core.keys import Key
from weft.model.adapter import Adapter
from weft.model.config import AdapterConfig
from weft.model.noise import uniform
from weft.model.sites import choose_sites
from weft.training.trial import MOST, apart, examples, logits


@pytest.fixture(scope="module")
def small(small_base):
    from weft.model.base import load_base

    return load_base(small_base)


def adapter(base, scale=1.0):
    layout = choose_sites(base.sites, AdapterConfig(rank=2, scale=scale))
    return Adapter(layout, uniform((layout.size,), -0.3, 0.3, Key.of(0)))


@pytest.mark.parametrize("architecture", ["llama", "bloom"])  # bloom runs on padded batches
def test_members_are_kept_apart(make_base, make_model, batch, architecture):
    base = make_base(architecture)
    ids_T = batch.examples[0].ids_T
    row = Example("row", ids_T, ids_T)
    one = adapter(base)
    together = logits(base, (None, one, None), row)
    with torch.no_grad():
        plain = make_model(architecture)(input_ids=torch.tensor(ids_T)[None]).logits[0, :-1]
    for member in (0, 2):
        torch.testing.assert_close(together[member], plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[1], logits(base, (one,), row)[0], rtol=1e-4, atol=1e-4)
    assert (together[1] - plain).abs().max() > 0.1


def test_the_largest_distances_are_found(small):
    rows = examples(small)
    assert len(rows) == 5 and all(2 <= len(row.ids_T) <= MOST for row in rows)
    one, other = adapter(small), adapter(small, 1.01)
    found = apart(small, one, other, rows)
    each = [logits(small, (None, one, other), row) for row in rows]
    assert found.positions == sum(len(row.ids_T) - 1 for row in rows)
    assert found.difference == max(float((x[1] - x[2]).abs().max()) for x in each)
    assert found.effect == max(float((x[1] - x[0]).abs().max()) for x in each)
    assert found.largest_logit == max(float(x[1].abs().max()) for x in each)
    assert apart(small, one, one, rows).difference == 0


def test_a_number_that_is_not_finite_is_not_lost(small):
    bad = adapter(small)
    bad.flat[0] = math.nan
    assert math.isnan(apart(small, adapter(small), bad, examples(small)).difference)
