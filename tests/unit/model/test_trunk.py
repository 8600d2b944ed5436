"""The layers below the first adapted one: read once for each row, and nothing else changes."""

import numpy as np
import pytest
import torch

from weft.core.batch import Batch
from weft.core.keys import Key
from weft.engines.scorer import LocalScorer
from weft.model.config import AdapterConfig
from weft.model.sites import choose_sites
from weft.model.trunk import Trunk

PACKED = ["llama", "mistral", "qwen2", "gemma", "mixtral", "gpt2", "opt", "opt-350m"]
PLENTY = 2**20


@pytest.fixture(params=PACKED)
def base(request, make_base):
    return make_base(request.param)


def layout_of(base, layers="last 1"):
    return choose_sites(base.sites, AdapterConfig(rank=3, layers=layers))


def trunk_of(base, memory_bytes=PLENTY, layers="last 1"):
    sites = [slot.site.name for slot in layout_of(base, layers).slots]
    return Trunk.of(base, sites, memory_bytes)


def theta(layout, *shape):
    noise = torch.Generator().manual_seed(1)
    return torch.randn(*shape, layout.size, generator=noise) * 0.1


def reads(trunk, monkeypatch):
    """Names of the examples that the trunk reads."""
    read, names = trunk._read, []
    monkeypatch.setattr(trunk, "_read", lambda example: names.append(example.id) or read(example))
    return names


def test_losses_and_gradients_are_those_of_the_whole_base(base, batch, make_batch):
    layout, trunk, batches = layout_of(base), trunk_of(base), [batch, make_batch(1)]
    assert trunk.depth == 2
    plain, quick = LocalScorer(base, layout), LocalScorer(base, layout, trunk=trunk)
    members_LMP = theta(layout, 2, 3)
    np.testing.assert_allclose(
        quick.losses(members_LMP, batches), plain.losses(members_LMP, batches), rtol=2e-6
    )
    theta_LP, keys = theta(layout, 2), [Key.of(0), Key.of(1)]
    wanted = plain.gradient(theta_LP, batches, keys)
    for _ in range(2):  # the second time from what was kept
        found = quick.gradient(theta_LP, batches, keys)
        torch.testing.assert_close(found.gradient_LP, wanted.gradient_LP, rtol=2e-5, atol=1e-7)
        assert found.loss_L == pytest.approx(wanted.loss_L, rel=2e-6)


def test_a_row_is_read_once(base, batch, monkeypatch):
    layout, trunk = layout_of(base), trunk_of(base)
    names = reads(trunk, monkeypatch)
    scorer = LocalScorer(base, layout, trunk=trunk)
    for seed in range(3):
        scorer.gradient(theta(layout, 2), [batch, batch], [Key.of(seed), Key.of(9)])
    assert sorted(names) == sorted(batch.ids)


def test_what_is_kept_changes_no_bit(make_base, batch, make_batch):
    base = make_base("llama")
    layout, keys = layout_of(base), [Key.of(0)]
    beside = Batch((*batch.examples, *make_batch(3).examples))
    warm = trunk_of(base)
    LocalScorer(base, layout, trunk=warm).gradient(theta(layout, 1), [beside], keys)
    found = [
        LocalScorer(base, layout, trunk=trunk).gradient(theta(layout, 1), [batch], keys)
        for trunk in (warm, trunk_of(base), trunk_of(base, memory_bytes=0))
    ]
    assert all(torch.equal(each.gradient_LP, found[0].gradient_LP) for each in found)


def test_no_more_is_kept_than_there_is_room_for(make_base, batch, monkeypatch):
    base = make_base("llama")
    row = 32 * 4  # hidden size, bytes of a number
    trunk = trunk_of(base, memory_bytes=row * sum(e.read for e in batch.examples[:2]))
    names = reads(trunk, monkeypatch)
    scorer = LocalScorer(base, layout_of(base), trunk=trunk)
    for _ in range(2):
        scorer.gradient(theta(scorer.layout, 1), [batch], [Key.of(0)])
    assert trunk.kept_bytes <= trunk.memory_bytes
    assert len(batch.examples) < len(names) < 2 * len(batch.examples)


def test_the_base_is_left_as_it_was(base, batch):
    trunk = trunk_of(base)
    scorer = LocalScorer(base, layout_of(base), trunk=trunk)
    scorer.gradient(theta(scorer.layout, 1), [batch], [Key.of(0)])
    assert not any("forward" in vars(layer) or layer._forward_pre_hooks for layer in trunk.layers)


def test_there_is_none_where_the_first_layer_is_adapted_or_the_base_pads(make_base):
    assert trunk_of(make_base("llama"), layers=None) is None
    assert trunk_of(make_base("bloom")) is None
    llama = make_base("llama")
    assert Trunk.of(llama, ["model.layers.2.mlp.up_proj", "model.embed_tokens"], PLENTY) is None
    assert Trunk.of(llama, ["model.layers.2.mlp.up_proj", "lm_head"], PLENTY).depth == 2


def test_there_is_none_where_upper_layers_read_more_than_the_output_of_the_lower(make_base):
    base = make_base("llama")
    first, last = base.model.model.layers[0].mlp, base.model.model.layers[2].mlp
    seen = {}
    first.register_forward_hook(lambda module, args, y: seen.update(y=y))
    last.register_forward_hook(lambda module, args, y: y + seen["y"])
    assert trunk_of(base) is None


def test_with_the_base_s_own_dropout_every_pass_is_the_whole_base(make_base, batch, monkeypatch):
    base = make_base("gpt2")
    trunk = trunk_of(base)
    names = reads(trunk, monkeypatch)
    scorer = LocalScorer(base, layout_of(base), base_dropout=True, trunk=trunk)
    scorer.gradient(theta(scorer.layout, 1), [batch], [Key.of(0)])
    assert not names
