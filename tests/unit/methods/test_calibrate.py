"""Noise of a wanted size: drawn and measured on the weights that it changes."""

import math

import pytest
import torch

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.methods.calibrate import calibrate, spread
from weft.methods.config import NoiseConfig
from weft.methods.population import Population
from weft.model.adapter import Layout, Site, Slot, initial_adapter

SIZES = {"layers.0.q": 0.02, "layers.0.v": 0.05, "layers.1.q": 0.01}
LAYOUT = Layout(
    tuple(
        Slot(Site(name, "linear", 96, 64 if name[-1] == "v" else 128, int(name[7])), 4, 2.0)
        for name in SIZES
    )
)


def trained(seed=0, size=0.03):
    """An adapter whose B is no longer zero."""
    flat = initial_adapter(LAYOUT, Key.of(seed)).flat
    generator = torch.Generator().manual_seed(seed)
    for _, b_Or in LAYOUT.factors(flat).values():
        b_Or.normal_(0, size, generator=generator)
    return flat


def measured(noise, start_P, members=60):
    """The standard deviation of each site's change over many members."""
    its = Population(start_P, noise.expanded(LAYOUT), Key.of(9), members, False)
    found = {}
    flats = its.members(range(members))
    for name, (a_rI, b_Or) in LAYOUT.factors(start_P).items():
        a_NrI, b_NOr = LAYOUT.factors(flats)[name]
        scale = LAYOUT.by_name[name].scale
        change = scale * (b_NOr @ a_NrI - b_Or @ a_rI)
        found[name] = float(change.std())
    return found


STARTS = {
    "fresh": initial_adapter(LAYOUT, Key.of(0)).flat,
    "trained": trained(),
    "far": trained(size=2.0),
    "zero": torch.zeros(LAYOUT.size),
}


@pytest.mark.parametrize("start", STARTS)
def test_in_weight_space_every_update_changes_its_weight_by_the_fraction(start):
    noise = calibrate(NoiseConfig(fraction=0.2), LAYOUT, SIZES, STARTS[start])
    for name, size in measured(noise, STARTS[start]).items():
        assert size == pytest.approx(0.2 * SIZES[name], rel=0.05)


def test_b_alone_carries_the_whole_change():
    noise = calibrate(NoiseConfig(), LAYOUT, SIZES, STARTS["trained"], only_b=True)
    assert all(a == 0 for a, _ in noise.by_site.values())
    for name, size in measured(noise, STARTS["trained"]).items():
        assert size == pytest.approx(0.1 * SIZES[name], rel=0.05)


def test_in_factor_space_a_and_b_of_a_layer_share_one_size():
    noise = calibrate(NoiseConfig(space="factor"), LAYOUT, SIZES, STARTS["fresh"])
    first, second = 0.1 * (0.02 + 0.05) / 2, 0.1 * 0.01
    assert noise.by_site["layers.0.q"] == noise.by_site["layers.0.v"] == (first, first)
    assert noise.by_site["layers.1.q"] == (second, second)


def test_fixed_noise_knows_no_weights():
    noise = calibrate(NoiseConfig(space="fixed", sigma=1e-3), LAYOUT, SIZES, STARTS["fresh"])
    assert set(noise.by_site.values()) == {(1e-3, 1e-3)}


def test_the_recorded_spread_is_the_measured_one():
    start_P = STARTS["trained"]
    noise = calibrate(NoiseConfig(space="fixed", sigma=0.02), LAYOUT, SIZES, start_P)
    found = measured(noise, start_P)
    for name, factors in LAYOUT.factors(start_P).items():
        rms = (math.sqrt(float(x.square().mean())) for x in factors)
        wanted = spread(LAYOUT.by_name[name], noise.by_site[name], *rms)
        assert found[name] == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize(
    "noise", [NoiseConfig(), NoiseConfig(space="factor"), NoiseConfig(space="fixed", sigma=0.1)]
)
def test_b_alone_over_a_zero_a_is_refused(noise):
    with pytest.raises(InputError, match="can never do anything"):
        calibrate(noise, LAYOUT, SIZES, STARTS["zero"], only_b=True)
