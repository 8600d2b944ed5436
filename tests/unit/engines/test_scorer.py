"""Losses of many adapters in one forward: those of one by one, and nothing kept for a gradient."""

import copy
import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from weft.core.batch import Batch
from weft.core.keys import Key
from weft.engines.scorer import LocalScorer
from weft.methods.boosting import stacked
from weft.methods.config import MezoConfig
from weft.methods.estimate import Point
from weft.methods.mezo import estimate
from weft.model import objectives
from weft.model.bank import Bank
from weft.model.base import prepare
from weft.model.config import AdapterConfig
from weft.model.forward import make_rows, target_scores
from weft.model.merging import merged_base
from weft.model.rows import Block
from weft.model.sites import choose_sites
from weft.model.weaving import Weft


def random_theta(layout, *lead, seed=1):
    return torch.randn(*lead, layout.size, generator=torch.Generator().manual_seed(seed)) * 0.1


def make_scorer(make_base, architecture="llama", rank=2, **settings):
    base = make_base(architecture)
    return LocalScorer(base, choose_sites(base.sites, AdapterConfig(rank=rank)), **settings)


def one_by_one(scorer, theta_LMP, batches):
    """Each adapter alone, each row alone, and a mean over tokens."""
    found = np.zeros(theta_LMP.shape[:2])
    for lane, batch in enumerate(batches):
        for member, theta_P in enumerate(theta_LMP[lane]):
            bank = Bank.from_flat(("it",), scorer.layout, theta_P[None])
            total = 0.0
            for example in batch.examples:
                rows = make_rows(scorer.base, [Block(0, 1, Batch((example,)))])
                with torch.no_grad():
                    nll_S, _ = target_scores(scorer.base, Weft(bank, scorer.stacks), rows)
                total += nll_S.double().sum().item()
            found[lane, member] = total / batch.supervised
    return found


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "opt-350m"])
def test_all_at_once_is_one_after_the_other(architecture, make_base, make_batch):
    scorer = make_scorer(make_base, architecture)
    theta_LMP = random_theta(scorer.layout, 2, 4)
    batches = [make_batch(0, rows=3), make_batch(1, rows=5)]
    expected = one_by_one(scorer, theta_LMP, batches)
    assert scorer.losses(theta_LMP, batches) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("rows", [None, 1, 2])
@pytest.mark.parametrize("members", [None, 1, 3, 5])
def test_however_a_forward_is_split_the_losses_are_the_same(members, rows, make_base, make_batch):
    """Five members do not divide by three, nor do lanes' rows by two; a piece may span lanes."""
    whole = make_scorer(make_base)
    split = make_scorer(make_base, members_per_forward=members, rows_per_forward=rows)
    theta_LMP = random_theta(whole.layout, 3, 4)
    batches = [make_batch(lane, rows=2 + lane) for lane in range(3)]
    expected = whole.losses(theta_LMP, batches)
    assert split.losses(theta_LMP, batches) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("settings", [{}, {"members_per_forward": 1, "rows_per_forward": 1}])
def test_each_lane_stands_on_its_own_stack(settings, make_base, make_batch):
    scorer = make_scorer(make_base, rank=1)
    layout = scorer.layout
    below = [stacked(layout, random_theta(layout, count, seed=count)) for count in (1, 3)]
    stacks = Bank.of({"0": None, "1": below[0], "2": below[1]})
    here = LocalScorer(scorer.base, layout, stacks=stacks, **settings)
    theta_LMP = random_theta(layout, 3, 2)
    batches = [make_batch(lane, rows=2 + lane) for lane in range(3)]
    found = here.losses(theta_LMP, batches)
    for lane, adapter in enumerate([None, *below]):
        base = scorer.base if adapter is None else merged_base(scorer.base, adapter)
        alone = LocalScorer(base, layout).losses(theta_LMP[lane : lane + 1], [batches[lane]])
        assert found[lane] == pytest.approx(alone[0], rel=1e-5)


@pytest.mark.parametrize("sides", ["two", "one"])
def test_batched_and_sequential_estimates_are_the_same(sides, make_base, make_batch):
    config = MezoConfig(eps=1e-2, directions=3, sides=sides)
    batches = [make_batch(0), make_batch(1)]
    scorers = [
        make_scorer(make_base),
        make_scorer(make_base, members_per_forward=1),
        make_scorer(make_base, rows_per_forward=1),
        make_scorer(make_base, members_per_forward=1, rows_per_forward=1),
    ]
    theta_LP = random_theta(scorers[0].layout, 2)
    point = Point(theta_LP, None, batches, [Key.of(0), Key.of(1)])
    whole, *others = (estimate(config, point, scorer) for scorer in scorers)
    lanes = [estimate(config, point.part(lane, lane + 1), scorers[0]) for lane in range(2)]
    alone_LP = torch.cat([each.direction_LP for each in lanes])
    for found_LP in (alone_LP, *(other.direction_LP for other in others)):
        difference_L = (found_LP - whole.direction_LP).norm(dim=1)
        assert (difference_L < 3e-4 * whole.direction_LP.norm(dim=1)).all()


class Watching:
    """The tokens' objective, and in what mode it is asked."""

    def __init__(self, base):
        self.base, self.seen = base, []

    def __getattr__(self, name):
        return getattr(objectives.TOKENS, name)

    def cells(self, base, weft, blocks):
        found = objectives.TOKENS.cells(base, weft, blocks)
        self.seen.append((torch.is_grad_enabled(), base.model.training, weft.dropout))
        assert found.loss_C.grad_fn is None
        return found


def test_losses_build_no_graph_and_know_no_dropout(make_base, make_batch):
    base = make_base("gpt2")  # whose configuration has dropout
    watching = Watching(base)
    layout = choose_sites(base.sites, AdapterConfig(rank=2))
    scorer = LocalScorer(base, layout, watching, dropout=0.5, base_dropout=True)
    theta_LMP = random_theta(layout, 1, 2).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        once, again = (scorer.losses(theta_LMP, [make_batch(0)]) for _ in range(2))
    assert not saved
    assert watching.seen == [(False, False, None)] * 2
    assert np.array_equal(once, again)
    quiet = LocalScorer(base, layout).losses(theta_LMP, [make_batch(0)])
    assert np.array_equal(once, quiet)


class Ledger(TorchDispatchMode):
    """The most bytes in tensors at one time, beyond those of a model."""

    def __init__(self, model):
        super().__init__()
        self.live = {tensor.untyped_storage()._cdata for tensor in model.state_dict().values()}
        self.now = self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.seen(tensor.untyped_storage())
        return out

    def seen(self, storage):
        place, size = storage._cdata, storage.nbytes()
        if place not in self.live:
            self.live.add(place)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.gone, place, size)

    def gone(self, place, size):
        self.live.discard(place)
        self.now -= size


def peak(model, work, *arguments):
    with Ledger(model) as ledger:
        work(*arguments)
    return ledger.most


def test_peak_memory_is_that_of_a_forward_without_gradient(make_model, make_batch):
    """A gradient keeps what every layer computed, so it grows with depth; losses do not."""
    needed = {}
    for layers in (2, 12):
        model = make_model("llama", num_hidden_layers=layers)
        base = prepare("llama", model, NoTokenizer())
        layout = choose_sites(base.sites, AdapterConfig(rank=1, layers="first 1"))
        scorer = LocalScorer(base, layout)
        theta_LP, batch = random_theta(layout, 1), make_batch(0, rows=16)
        needed[layers] = (
            peak(model, scorer.losses, theta_LP[:, None], [batch]),
            peak(model, scorer.gradient, theta_LP, [batch], [Key.of(0)]),
        )
    (losses_2, gradient_2), (losses_12, gradient_12) = needed[2], needed[12]
    assert gradient_12 > 2 * gradient_2
    assert losses_12 < 1.1 * losses_2


def test_the_base_is_not_written(make_base, make_batch):
    scorer = make_scorer(make_base)
    before = copy.deepcopy(scorer.base.model.state_dict())
    theta_LP = random_theta(scorer.layout, 1)
    scorer.losses(theta_LP[:, None], [make_batch(0)])
    scorer.gradient(theta_LP, [make_batch(0)], [Key.of(0)])
    after = scorer.base.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in scorer.base.model.parameters())


class NoTokenizer:
    pad_token_id = None
    eos_token_id = 1
