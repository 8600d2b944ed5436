"""How work is divided; what needs two processes is in tests/unit/training/test_ranks.py."""

import numpy as np
import pytest
import torch

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.engines.local import LocalEngine
from weft.engines.parallel import ParallelEngine, ParallelScorer
from weft.engines.ranks import ALONE, Ranks
from weft.engines.scorer import LocalScorer
from weft.model.bank import Bank
from weft.model.config import AdapterConfig
from weft.model.sites import choose_sites


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("costs", [[], [5], [5, 5], [1, 9, 2, 8, 3], [4] * 12])
def test_every_piece_is_one_ranks(costs, size):
    shares = [Ranks(rank, size).share(costs) for rank in range(size)]
    assert sorted(piece for share in shares for piece in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    empty = sum(not share for share in shares)
    assert empty == max(0, size - len(costs))


def test_the_dearest_piece_is_not_shared_with_others_where_they_weigh_as_much():
    costs = [10, 3, 3, 4]
    assert [Ranks(rank, 2).share(costs) for rank in range(2)] == [[0], [1, 2, 3]]


def test_alone_nothing_is_sent():
    values, tensor = np.array([1.5]), torch.tensor([2.5])
    assert ALONE.sums(values) is values
    assert ALONE.sum(tensor) is tensor
    assert ALONE.gather("x") == ["x"]
    assert ALONE.of_first(lambda: b"y") == b"y"
    assert ALONE.any(True) and not ALONE.any(False)
    ALONE.refuse_unlike({"a": "b"})


def test_each_process_of_a_machine_has_a_device_of_its_own():
    assert Ranks(3, 4, local=1).device("cuda") == "cuda:1"
    assert Ranks(3, 4, local=1).device("cpu") == "cpu"
    assert ALONE.device("cuda:1") == "cuda:1"
    with pytest.raises(InputError, match="device is cuda:1, and 2 processes cannot all be there"):
        Ranks(0, 2).device("cuda:1")


class Relay(Ranks):
    """One rank after the other in this process: each adds to what those before it have sent."""

    def __init__(self, rank: int, size: int, sent: list) -> None:
        super().__init__(rank, size)
        object.__setattr__(self, "sent", sent)
        object.__setattr__(self, "next", iter(range(len(sent) if rank else 10**6)))

    def sums(self, values):
        place = next(self.next)
        if self.rank == 0:
            self.sent.append(values)
        else:
            self.sent[place] = self.sent[place] + values
        return self.sent[place]

    sum = sums


def divided(size, work):
    """What the last of some ranks has, once all have sent theirs."""
    sent: list = []
    return [work(Relay(rank, size, sent)) for rank in range(size)][-1]


@pytest.fixture(scope="module")
def scorer(make_base):
    base = make_base("llama")
    layout = choose_sites(base.sites, AdapterConfig(rank=2))
    return LocalScorer(base, layout, dropout=0.3)


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.parametrize("size", [2, 3, 5])
def test_divided_sums_are_whole_ones(size, scorer, make_batch):
    """Lanes of two and of five rows: some ranks have rows of one lane only, some of none."""
    batches = [make_batch(0, rows=2), make_batch(1, rows=5)]
    theta_LP, theta_LMP = random(2, scorer.layout.size), random(2, 3, scorer.layout.size)
    keys = [Key.of(0), Key.of(1)]
    losses = divided(size, lambda ranks: ParallelScorer(scorer, ranks).losses(theta_LMP, batches))
    assert losses == pytest.approx(scorer.losses(theta_LMP, batches), rel=1e-6)
    found = divided(
        size, lambda ranks: ParallelScorer(scorer, ranks).gradient(theta_LP, batches, keys)
    )
    whole = scorer.gradient(theta_LP, batches, keys)  # with dropout: noise is an example's own
    assert found.loss_L == pytest.approx(whole.loss_L, rel=1e-6)
    difference_L = (found.gradient_LP - whole.gradient_LP).norm(dim=1)
    assert (difference_L < 1e-5 * whole.gradient_LP.norm(dim=1)).all()


@pytest.mark.parametrize("size", [2, 9])
def test_divided_scores_are_whole_ones(size, scorer, make_batch):
    base, batch = scorer.base, make_batch(0, rows=5)
    bank = Bank.from_flat(("a", "b"), scorer.layout, random(2, scorer.layout.size))
    whole = LocalEngine(base).score(bank, batch)
    found = divided(size, lambda ranks: ParallelEngine(base, ranks=ranks).score(bank, batch))
    assert found.loss_NE == pytest.approx(whole.loss_NE, rel=2e-6)
    assert np.array_equal(found.correct_NE, whole.correct_NE)
    assert np.array_equal(found.count_E, whole.count_E)
