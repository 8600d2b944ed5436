"""When rounds end, what a commit is, and which parameters a round may move."""

import pytest
import torch

from weft.core.keys import Key
from weft.methods.boosting import (
    Rounds,
    chain,
    free_parameters,
    fresh,
    layers_of_round,
    stacked,
)
from weft.methods.config import BoostConfig, PlateauConfig
from weft.model.adapter import Layout, Site, Slot, initial_adapter
from weft.model.merging import update


def make_layout(rank=1, layers=4):
    sites = [
        Site(f"layers.{layer}.{name}", "linear", 6, outputs, layer)
        for layer in range(layers)
        for name, outputs in (("q", 5), ("v", 3))
    ]
    return Layout(tuple(Slot(site, rank, 16.0) for site in sites))


def random_stack(layout, count, seed=0):
    return torch.randn(count, layout.size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("other", ["steps_per_iteration", "merge_frequency"])
def test_a_plateau_and_a_count_are_refused(other):
    with pytest.raises(ValueError, match=f"`plateau` and `{other}` 5 both say when to commit"):
        BoostConfig(plateau=PlateauConfig(), **{other: 5})


def test_a_stack_is_one_adapter_of_rank_k():
    layout = make_layout(rank=2)
    stack_KP = random_stack(layout, 3)
    whole = stacked(layout, stack_KP)
    assert {(slot.rank, slot.scale) for slot in whole.layout.slots} == {(6, 16.0)}
    for slot in layout.slots:
        a, b = zip(*(layout.factors(each)[slot.site.name] for each in stack_KP), strict=True)
        expected_OI = 16 * sum(
            b_Or.double() @ a_rI.double() for a_rI, b_Or in zip(a, b, strict=True)
        )
        torch.testing.assert_close(update(whole, slot.site.name), expected_OI)


def test_a_current_adapter_that_does_nothing_is_left_out_of_the_chain():
    layout = make_layout()
    stack_KP, idle_P = random_stack(layout, 2), fresh(layout, Key.of(0), 2)
    assert {slot.rank for slot in chain(layout, stack_KP, idle_P).layout.slots} == {2}
    assert {slot.rank for slot in chain(layout, stack_KP, stack_KP[0]).layout.slots} == {3}
    alone = chain(layout, stack_KP[:0], idle_P)  # nothing learnt at all is still an adapter
    assert torch.equal(alone.flat, idle_P)


def test_shrinkage_is_in_b_and_leaves_what_was_committed_before_alone():
    layout = make_layout()
    stack_KP, theta_P = random_stack(layout, 2), random_stack(layout, 1, seed=1)[0]
    before_P = theta_P.clone()
    found_KP = Rounds(stack_KP, theta_P).committed(theta_P, layout, 0.25)
    assert torch.equal(found_KP[:2], stack_KP)
    assert torch.equal(theta_P, before_P)
    for name, (a_rI, b_Or) in layout.factors(found_KP[2]).items():
        given_a, given_b = layout.factors(theta_P)[name]
        assert torch.equal(a_rI, given_a)
        assert torch.equal(b_Or, 0.25 * given_b)


def test_each_round_begins_with_an_adapter_of_its_own_key_and_the_first_with_the_run_s():
    layout, key = make_layout(), Key.of(3)
    assert torch.equal(fresh(layout, key, 0), initial_adapter(layout, key).flat)
    starts = [fresh(layout, key, number) for number in range(4)]
    assert len({tuple(start.tolist()) for start in starts}) == 4
    assert torch.equal(starts[2], fresh(layout, key, 2))
    assert all(not b.any() for start in starts for _, b in layout.factors(start).values())


def test_layers_are_drawn_anew_for_each_round_and_all_of_them_in_time():
    layout = make_layout()
    drawn = [layers_of_round(layout, 2, Key.of(0), number) for number in range(20)]
    assert all(len(set(layers)) == 2 for layers in drawn)
    assert {layer for layers in drawn for layer in layers} == {0, 1, 2, 3}
    assert len(set(drawn)) > 3
    assert drawn == [layers_of_round(layout, 2, Key.of(0), number) for number in range(20)]
    assert drawn != [layers_of_round(layout, 2, Key.of(1), number) for number in range(20)]


@pytest.mark.parametrize("layers", [None, (1, 3)])
@pytest.mark.parametrize("only_b", [False, True])
def test_what_may_move_is_b_or_both_in_the_layers_of_the_round(only_b, layers):
    layout = make_layout()
    free_P = free_parameters(layout, only_b, layers)
    for name, (a_rI, b_Or) in layout.factors(free_P).items():
        here = layers is None or layout.by_name[name].site.layer in layers
        assert bool(b_Or.all()) == bool(b_Or.any()) == here
        assert bool(a_rI.all()) == bool(a_rI.any()) == (here and not only_b)


def judge(losses, min_delta=0.0):
    lane = Rounds.none_yet(torch.zeros(1))
    for step, loss in enumerate(losses):
        lane = lane.judged(torch.full((1,), float(step)), step, loss, min_delta)
    return lane


def test_the_best_point_is_the_first_of_equals_and_staleness_counts_from_it():
    lane = judge([3.0, 2.0, 2.0, 2.5])
    assert (lane.best_step, lane.best_loss, lane.best_P.item(), lane.stale) == (1, 2.0, 1.0, 2)


def test_a_gain_below_min_delta_is_none():
    assert judge([3.0, 2.95, 2.91], min_delta=0.1).stale == 2
    assert judge([3.0, 2.95, 2.89], min_delta=0.1).best_step == 2


def test_a_new_round_starts_from_the_loss_that_was_committed():
    lane = judge([3.0, 2.0, 2.5]).next(2, torch.zeros(1, 1), torch.ones(1), 2.0)
    assert (lane.number, lane.started, lane.best_step, lane.best_loss, lane.stale) == (
        1,
        2,
        2,
        2.0,
        0,
    )
