"""How many members share a forward, and that it bounds one without changing what comes out."""

import numpy as np
import pytest
import torch

from weft.core.batch import Batch, Example
from weft.core.keys import Key
from weft.engines import forwards
from weft.engines.forwards import POSITIONS, members_at_once
from weft.engines.local import LocalEngine
from weft.engines.scorer import LocalScorer
from weft.model import forward
from weft.model.bank import Bank
from weft.model.config import AdapterConfig
from weft.model.noise import generator
from weft.model.objectives import TOKENS
from weft.model.sites import choose_sites


def row(read):
    """A row of which a forward reads so many tokens: nothing is predicted from the last."""
    ids_T = np.arange(read + 1)
    return Example("0", ids_T, ids_T)


@pytest.mark.parametrize(("read", "members"), [(1, POSITIONS), (100, POSITIONS // 100)])
def test_as_many_share_a_forward_as_read_so_many_positions(read, members):
    assert members_at_once(None, [Batch((row(1),)), Batch((row(read),))]) == members


def test_a_member_is_never_divided():
    assert members_at_once(None, [Batch((row(POSITIONS), row(POSITIONS)))]) == 1


def test_what_is_asked_for_is_done():
    assert members_at_once(50, [Batch((row(POSITIONS),))]) == 50


@pytest.fixture
def watched(make_base, make_batch, monkeypatch):
    """A scorer's base, layout and batches, and what its forwards read: a limit of 40 positions."""
    read, make_rows = [], forward.make_rows

    def watch(base, blocks):
        read.append(sum(block.members * block.positions for block in blocks))
        return make_rows(base, blocks)

    monkeypatch.setattr("weft.model.objectives.make_rows", watch)
    base = make_base("llama")
    layout = choose_sites(base.sites, AdapterConfig(rank=2))
    return base, layout, [make_batch(lane, rows=2) for lane in range(2)], read


def theta(layout, *shape):
    return torch.randn(*shape, layout.size, generator=generator(Key.of(0))) * 0.1


def longest(batches):
    return max(sum(example.read for example in batch.examples) for batch in batches)


def test_losses_of_many_members_take_forwards_of_bounded_size(watched, monkeypatch):
    base, layout, batches, read = watched
    theta_LMP = theta(layout, 2, 6)
    whole = LocalScorer(base, layout, members_per_forward=100).losses(theta_LMP, batches)
    assert len(read) == 1
    monkeypatch.setattr(forwards, "POSITIONS", 3 * longest(batches))
    read.clear()
    found = LocalScorer(base, layout).losses(theta_LMP, batches)
    assert len(read) == 4
    assert max(read) <= forwards.POSITIONS
    assert found == pytest.approx(whole, rel=2e-6)


def test_gradients_of_many_lanes_take_forwards_of_bounded_size(watched, monkeypatch):
    base, layout, batches, read = watched
    theta_LP, keys = theta(layout, 2), [Key.of(0), Key.of(1)]
    whole = LocalScorer(base, layout, members_per_forward=100).gradient(theta_LP, batches, keys)
    assert len(read) == 1
    monkeypatch.setattr(forwards, "POSITIONS", longest(batches))
    read.clear()
    found = LocalScorer(base, layout).gradient(theta_LP, batches, keys)
    assert len(read) == 2
    assert found.loss_L == pytest.approx(whole.loss_L, rel=2e-6)
    assert torch.allclose(found.gradient_LP, whole.gradient_LP, rtol=1e-4, atol=1e-6)


def test_scores_of_many_members_take_forwards_of_bounded_size(watched, monkeypatch):
    base, layout, batches, read = watched
    bank = Bank.from_flat(tuple("abcde"), layout, theta(layout, 5))
    whole = LocalEngine(base, members_per_forward=100).score(bank, batches[0], TOKENS)
    assert len(read) == 1
    monkeypatch.setattr(forwards, "POSITIONS", 2 * longest(batches[:1]))
    read.clear()
    found = LocalEngine(base).score(bank, batches[0], TOKENS)
    assert len(read) == 3
    assert max(read) <= forwards.POSITIONS
    assert found.loss_NE == pytest.approx(whole.loss_NE, rel=2e-6)
