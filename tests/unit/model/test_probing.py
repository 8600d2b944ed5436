"""Questions to a base are answered by its own forward, and leave no trace."""

from __future__ import annotations

import pytest
import torch

from weft.core.keys import Key
from weft.model import weaving
from weft.model.adapter import initial_adapter
from weft.model.config import AdapterConfig
from weft.model.probing import embeddings_moved, seen_scales
from weft.model.sites import choose_sites

ARCHITECTURES = ["llama", "gpt2", "gemma", "opt", "gptj"]


def adapter_on(base, **settings):
    layout = choose_sites(base.sites, AdapterConfig(rank=3, **settings))
    return initial_adapter(layout, Key.of(5))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scale", [0.25, 2.0, 300.0])
def test_the_scale_of_a_forward_is_the_one_that_is_declared(make_base, architecture, scale):
    base = make_base(architecture)
    adapter = adapter_on(base, scale=scale)
    found = seen_scales(base, adapter)
    assert set(found) == set(adapter.sites)
    for seen, unexplained in found.values():
        assert seen == pytest.approx(scale, rel=1e-4)
        assert unexplained < 1e-4


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_sixteen_bits_round_it_and_no_more(make_base, dtype, close):
    base = make_base("llama")
    base.model.to(dtype)
    try:
        found = seen_scales(base, adapter_on(base, scale=7.0))
    finally:
        base.model.float()
    assert all(seen == pytest.approx(7.0, rel=close) for seen, _ in found.values())


def test_a_forward_that_multiplies_by_something_else_is_seen(make_base, monkeypatch):
    base = make_base("llama")
    adapter = adapter_on(base, scale=2.0)
    right = weaving.AddLowRank.apply

    def wrong(y, x, a_NrI, b_NOr, plan):
        return right(y, x, a_NrI, 4 * b_NOr, plan)

    monkeypatch.setattr(weaving.AddLowRank, "apply", wrong)
    found = seen_scales(base, adapter)
    assert all(seen == pytest.approx(8.0, rel=1e-4) for seen, _ in found.values())


def test_asking_changes_neither_base_nor_adapter(make_base):
    base = make_base("llama")
    adapter = adapter_on(base)
    before, flat = base.fingerprint(), adapter.flat.clone()
    seen_scales(base, adapter)
    with embeddings_moved(base, Key.of(0)):
        pass
    assert base.fingerprint() == before
    assert torch.equal(adapter.flat, flat)
    assert not any(module._forward_hooks for module in base.model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_embeddings_move_by_one_unit_in_the_last_place(make_base, dtype):
    base = make_base("llama")
    base.model.to(dtype)
    embed, ids = base.model.get_input_embeddings(), torch.arange(2, 30)[None]
    try:
        plain = embed(ids)
        with embeddings_moved(base, Key.of(1)):
            moved = embed(ids)
            again = embed(ids)
        with embeddings_moved(base, Key.of(2)):
            other = embed(ids)
        after = embed(ids)
    finally:
        base.model.float()
    assert (moved != plain).all()
    assert torch.equal(moved, again)
    assert not torch.equal(moved, other)
    assert torch.equal(after, plain)
    between = ((moved.double() + plain.double()) / 2).to(dtype)
    assert ((between == moved) | (between == plain)).all(), "no number lies between"
    assert ((moved > plain).float().mean() - 0.5).abs() < 0.1
