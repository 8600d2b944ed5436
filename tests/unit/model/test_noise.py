"""Tensors from keys: the same key the same tensor, and the distribution that was asked for."""

import numpy as np
import pytest
import torch

from weft.core.keys import Key
from weft.model.adapter import Layout, Site, Slot, initial_adapter
from weft.model.noise import dropout_rate, fill_keep_mask, global_generator, uniform


def keep_mask(shape, rate, key):
    mask = np.empty(shape, dtype=bool)
    fill_keep_mask(mask, rate, key)
    return torch.from_numpy(mask)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.001])
def test_dropout_keeps_at_its_rate(rate):
    mask = keep_mask((1000, 1000), rate, Key.of(0))
    spread = (rate * (1 - rate) / mask.numel()) ** 0.5
    assert (~mask).double().mean().item() == pytest.approx(dropout_rate(rate), abs=5 * spread)
    assert dropout_rate(rate) == pytest.approx(rate, abs=2**-17)


def test_masks_are_their_key_s():
    assert torch.equal(keep_mask((7, 9), 0.5, Key.of(1)), keep_mask((7, 9), 0.5, Key.of(1)))
    assert not torch.equal(keep_mask((70, 9), 0.5, Key.of(1)), keep_mask((70, 9), 0.5, Key.of(2)))


def test_a_fresh_adapter_has_uniform_a_and_zero_b():
    site = Site("layer", "linear", inputs=400, outputs=30, layer=None)
    adapter = initial_adapter(Layout((Slot(site, 200, 2.0),)), Key.of(0))
    a_rI, b_Or = adapter.sites["layer"]
    assert (b_Or == 0).all()
    assert a_rI.abs().max() <= 1 / 20
    assert a_rI.std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.01)


def test_a_site_s_a_does_not_depend_on_the_others():
    sites = [Site(name, "linear", 8, 8, None) for name in "ab"]
    both = initial_adapter(Layout(tuple(Slot(s, 2, 1.0) for s in sites)), Key.of(3))
    one = initial_adapter(Layout((Slot(sites[1], 2, 1.0),)), Key.of(3))
    assert torch.equal(both.sites["b"][0], one.sites["b"][0])
    assert not torch.equal(both.sites["a"][0], both.sites["b"][0])


def test_global_generators_are_put_back():
    before = torch.get_rng_state()
    with global_generator(Key.of(0)):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with global_generator(Key.of(0)):
        assert torch.equal(torch.rand(3), first)
    assert uniform((2,), 0, 1, Key.of(0)).shape == (2,)
