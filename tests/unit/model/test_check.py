"""The check of the cache: silent about a right one, loud about a broken one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weft.engines.local import LocalEngine
from weft.model.bank import Bank
from weft.model.cache import KVCache
from weft.model.check import CacheCheck, Place
from weft.model.config import AdapterConfig
from weft.model.decoding import Decoding
from weft.model.sites import choose_sites


def prompts(lengths=(7, 3, 5, 3)):
    generator = np.random.default_rng(0)
    return [generator.integers(6, 97, length) for length in lengths]


@pytest.fixture
def engine_and_bank(make_base, request):
    base = make_base(getattr(request, "param", "llama"))
    layout = choose_sites(base.sites, AdapterConfig(rank=3, targets="all-linear"))
    flat_NP = torch.randn(2, layout.size, generator=torch.Generator().manual_seed(2)) * 0.2
    return LocalEngine(base), Bank.from_flat("ab", layout, flat_NP)


@pytest.mark.parametrize("engine_and_bank", ["llama", "mistral", "gpt2", "opt"], indirect=True)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_right_cache_differs_by_rounding_and_changes_no_token(engine_and_bank, temperature):
    engine, bank = engine_and_bank
    decoding, check = Decoding(max_tokens=12, temperature=temperature), CacheCheck()
    said = engine.generate(bank, prompts(), decoding, check=check)
    plain = engine.generate(bank, prompts(), decoding)
    assert said == plain  # it only looks
    assert check.passed and not check.flips
    assert 0 < check.largest <= check.bound < 1e-2
    tokens = [len(each.ids) + (each.finish == "stop token") for row in said for each in row]
    assert check.tokens == sum(tokens)


def one_too_far(advance):
    """Every position after the prompt is one more than it should be."""

    def broken(self, live_B):
        advance(self, live_B)
        if not hasattr(self, "shifted"):
            self.lengths_B, self.shifted = self.lengths_B + 1, True

    return broken


def forgets_a_key(advance):
    """The first key of every layer is gone after the first step."""

    def broken(self, live_B):
        for keys in self._keys.values():
            keys[:, :, 0] = 0
        advance(self, live_B)

    return broken


@pytest.mark.parametrize(("damage", "flips"), [(one_too_far, True), (forgets_a_key, False)])
def test_a_broken_cache_is_found_with_its_place(engine_and_bank, monkeypatch, damage, flips):
    engine, bank = engine_and_bank
    monkeypatch.setattr(KVCache, "advance", damage(KVCache.advance))
    check = CacheCheck(first_prompt=10)
    engine.generate(bank, prompts(), Decoding(max_tokens=12, ignore_eos=True), check=check)
    assert not check.passed
    assert check.largest > 10 * check.bound
    assert isinstance(check.at, Place)
    assert check.at.token > 2  # the prefill and the first step were right
    assert check.at.prompt in range(10, 14) and check.at.member in range(2)
    assert bool(check.flips) == flips  # a small damage may change no token, and is found
    for flip in check.record()["flips"]:
        assert flip["margin"] > 0 and flip["place"]["prompt"] >= 10


@pytest.mark.parametrize("engine_and_bank", ["bloom"], indirect=True)
def test_a_base_without_a_cache_has_nothing_to_check(engine_and_bank):
    engine, bank = engine_and_bank
    check = CacheCheck()
    engine.generate(bank, prompts(), Decoding(max_tokens=3), check=check)
    assert check.tokens == 0 and check.passed
