"""A population is a value: any part of it, made anywhere, is the same."""

import numpy as np
import torch

from weft.core.keys import Key
from weft.methods.population import Population

P = 5000


def population(size=6, antithetic=True, **given):
    centre_P = torch.linspace(-1, 1, P)
    noise_P = torch.linspace(0, 2, P)  # the first parameter stays
    return Population(centre_P, noise_P, Key.of(given.get("seed", 0)), size, antithetic)


def test_any_part_is_the_same_bits_as_the_whole():
    whole = population().members(range(7))
    for start, stop in ((0, 1), (1, 4), (5, 7)):
        assert torch.equal(population().members(range(start, stop)), whole[start:stop])


def test_the_last_is_the_centre():
    its = population()
    assert torch.equal(its.members([6])[0], its.centre_P)


def test_pairs_lie_on_either_side_of_the_centre():
    its = population()
    plus, minus, other, _ = its.members(range(4)).double()
    torch.testing.assert_close((plus + minus) / 2, its.centre_P.double(), atol=1e-6, rtol=0)
    assert not torch.equal(plus, other)


def test_noise_is_normal_of_the_given_size_and_parameters_do_not_share_it():
    its = population(size=400, antithetic=False)
    eps = (its.members(range(400)) - its.centre_P)[:, 1:] / its.noise_P[1:]
    assert abs(eps.mean()) < 0.005
    assert abs(eps.std() - 1) < 0.005
    together = np.corrcoef(eps[:, :40].numpy(), rowvar=False)
    assert abs(together - np.eye(40)).max() < 0.25


def test_other_keys_make_other_members():
    assert not torch.equal(population().members([0]), population(seed=1).members([0]))


def test_combine_is_the_mean_of_weighted_noise():
    for antithetic in (True, False):
        its = population(antithetic=antithetic)
        weight_N = np.array([0.3, -1.2, 2.0, 0.0, 0.5, 0.1])
        eps = (its.members(range(6)) - its.centre_P).double()[:, 1:] / its.noise_P[1:]
        wanted = (torch.from_numpy(weight_N)[:, None] * eps).mean(dim=0)
        found = its.combine(weight_N)
        torch.testing.assert_close(found[1:].double(), wanted, atol=1e-5, rtol=1e-3)
        assert found[0] == 0  # what has no noise does not move


def test_combine_is_the_same_bits_with_any_number_of_threads():
    weight_N, threads = np.linspace(-1, 1, 40) ** 3, torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(population(size=40).combine(weight_N))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
