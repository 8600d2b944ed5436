"""Tensors from keys: the same key the same tensor, and the distribution that was asked for."""

import numpy as np
import pytest
import torch

from weft.core.keys import Key
from weft.model.adapter import Layout, Site, Slot, initial_adapter
from weft.model.noise import (
    MASK_PART,
    dropout_rate,
    fill_keep_mask,
    global_generator,
    normal,
    rademacher,
    uniform,
)

NORMAL = [-0.3706057369709015, 0.2695368528366089, -2.1287331581115723, 1.6415668725967407]
SIGNS = [-1, -1, -1, -1, 1, -1, -1, 1]


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


def test_a_mask_drawn_in_parts_is_that_of_one_draw():
    shape = (3, 2 * MASK_PART // 3 + 1)  # a bit over two parts
    count = shape[0] * shape[1]
    raw = Key.of(1).numpy().bit_generator.random_raw(-(-count // 4)).view(np.uint16)
    expected = raw[:count].reshape(shape) >= round(0.1 * 2**16)
    assert torch.equal(keep_mask(shape, 0.1, Key.of(1)), torch.from_numpy(expected))


COUNT = 400_000
DRAWS = pytest.mark.parametrize(
    # the mean of x, x^2, x^3 and x^4, and the variance of each of these powers
    ("draw", "moments", "variances"),
    [(normal, (0, 1, 0, 3), (1, 2, 15, 96)), (rademacher, (0, 1, 0, 1), (1, 0, 1, 0))],
    ids=["normal", "rademacher"],
)


@DRAWS
def test_directions_have_the_moments_of_their_law(draw, moments, variances):
    x = draw(COUNT, Key.of(5)).double()
    for power, (moment, variance) in enumerate(zip(moments, variances, strict=True), start=1):
        assert x.pow(power).mean().item() == pytest.approx(
            moment, abs=5 * (variance / COUNT) ** 0.5
        )


def test_normal_draws_fall_where_the_normal_law_says():
    x = normal(COUNT, Key.of(6)).double().sort().values
    law = torch.special.ndtr(x)
    found = torch.arange(1, COUNT + 1) / COUNT
    assert (law - found).abs().max() < 1.95 / COUNT**0.5  # Kolmogorov-Smirnov at one in a thousand


@DRAWS
def test_directions_of_different_keys_are_uncorrelated(draw, moments, variances):
    root = Key.of(7)
    z_KC = torch.stack([draw(COUNT, root.fold("direction", k)) for k in range(8)]).double()
    gram_KK = z_KC @ z_KC.T / COUNT
    gram_KK.fill_diagonal_(0)
    assert gram_KK.abs().max() < 5 / COUNT**0.5
    for lag in (1, 2, 32, 64):  # nor are the numbers of one
        assert abs((z_KC[0, lag:] * z_KC[0, :-lag]).mean()) < 5 / COUNT**0.5


@DRAWS
def test_a_direction_is_its_key_s(draw, moments, variances):
    for count in (1, 63, 64, 1001):
        z = draw(count, Key.of(8))
        assert z.shape == (count,) and z.dtype == torch.float32
        assert torch.equal(z, draw(count, Key.of(8)))
    assert not torch.equal(draw(1001, Key.of(8)), draw(1001, Key.of(9)))


def test_the_numbers_of_a_key_do_not_change():
    """A run is replayed from its keys, on another machine and years later."""
    assert normal(4, Key.of(0)).tolist() == pytest.approx(NORMAL, rel=1e-6)
    assert rademacher(8, Key.of(0)).tolist() == SIGNS


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
