"""One step's arithmetic: what moves, at which rate, and how rounds end."""

import pytest
import torch

from weft.core.keys import Key
from weft.methods.boosting import fresh
from weft.model.adapter import Layout, Site, Slot
from weft.training.advance import Course, end_rounds, move
from weft.training.config import RunConfig
from weft.training.state import State

LAYOUT = Layout(tuple(Slot(Site(f"layers.{n}.q", "linear", 4, 3, n), 1, 16.0) for n in range(4)))


def course(*, boost=None, lanes=1, steps=100, factors="both", **optimiser):
    config = RunConfig.model_validate(
        {
            "data": {"task": "instruct"},
            "steps": steps,
            "seeds": list(range(lanes)),
            "adapter": {"rank": 1, "factors": factors},
            "optimiser": {"name": "sgd", "lr": 0.5, "schedule": "constant", "clip": None}
            | optimiser,
            "boost": boost,
        }
    )
    start_LP = torch.zeros(len(config.lanes), LAYOUT.size)
    return Course(config, LAYOUT, steps, start_LP)


def start(course):
    return State.fresh(torch.stack([fresh(LAYOUT, Key.of(lane.seed), 0) for lane in course.lanes]))


def ones(course):
    return torch.ones(len(course.lanes), LAYOUT.size)


def judged(state, *losses):
    return state.judged(tuple(losses))


def test_a_step_goes_against_the_direction_and_says_how_far():
    its = course()
    moved = move(its, start(its), ones(its))
    torch.testing.assert_close(moved.state.theta_LP, start(its).theta_LP - 0.5)
    assert moved.state.step == 1
    assert moved.lr_L == (0.5,)
    assert moved.norm_L[0] == pytest.approx(LAYOUT.size**0.5)
    assert moved.update_norm_L[0] == pytest.approx(0.5 * LAYOUT.size**0.5)


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_what_is_frozen_is_not_moved_by_weight_decay_or_momentum(rule):
    settings = {"momentum": 0.9} if rule == "sgd" else {}
    its = course(factors="b", name=rule, weight_decay=0.5, **settings)
    state = start(its)
    for _ in range(3):
        state = move(its, state, ones(its)).state
    for (a, b), (start_a, start_b) in zip(
        LAYOUT.factors(state.theta_LP[0]).values(),
        LAYOUT.factors(start(its).theta_LP[0]).values(),
        strict=True,
    ):
        assert torch.equal(a, start_a)
        assert (b != start_b).all()


def test_each_lane_draws_its_own_layers_and_keeps_them_for_its_round():
    its = course(boost={"layers_per_round": 2, "steps_per_iteration": 5}, lanes=6)
    state = start(its)
    free_LP = its.free(state.rounds)
    assert free_LP.shape == (6, LAYOUT.size)
    assert (free_LP.sum(dim=1) == LAYOUT.size / 2).all()
    assert len({tuple(row.tolist()) for row in free_LP}) > 1
    state = move(its, state, ones(its)).state
    assert torch.equal(its.free(state.rounds), free_LP)
    ended, _ = end_rounds(its, state, range(6), at_best=False)
    assert not torch.equal(its.free(ended.rounds), free_LP)
    assert course().free(state.rounds) is None


def test_a_kept_moment_of_a_layer_that_rests_does_not_move_it():
    its = course(
        boost={"layers_per_round": 1, "steps_per_iteration": 1, "optimiser": "keep"}, momentum=0.9
    )
    state = start(its)
    for _ in range(6):
        state = move(its, state, ones(its) * its.free(state.rounds)).state
        (before,) = its.free(state.rounds)
        state, _ = end_rounds(its, state, [0], at_best=False)
        after = move(its, state, ones(its) * its.free(state.rounds)).state
        moved = (after.theta_LP != state.theta_LP)[0]
        assert torch.equal(moved, its.free(state.rounds)[0] == 1)
        assert before.any()


def test_a_new_round_warms_up_from_its_own_start():
    its = course(boost={"warmup_steps": 4, "steps_per_iteration": 10})
    state = start(its)
    rates = []
    for step in range(13):
        moved = move(its, state, ones(its))
        rates.append(moved.lr_L[0] / 0.5)
        state = moved.state
        if step == 6:
            state, _ = end_rounds(its, state, [0], at_best=False)
    assert rates == [1] * 7 + [0.25, 0.5, 0.75, 1, 1, 1]


def test_a_commit_puts_the_adapter_on_the_stack_and_begins_anew():
    its = course(boost={"steps_per_iteration": 1})
    state = move(its, start(its), ones(its)).state
    after, (ended,) = end_rounds(its, state, [0], at_best=False)
    assert torch.equal(after.stacks[0], state.theta_LP)
    assert torch.equal(after.theta_LP[0], fresh(LAYOUT, Key.of(0), 1))
    assert not after.moments.first_LP.any()
    assert ended.event() == {
        "kind": "commit",
        "member": "seed-0" if len(its.lanes) > 1 else "adapter",
        "round": 0,
        "commits": 1,
        "of_step": 1,
    }
    assert not state.stacks[0].numel()  # the state before is as it was


def test_a_plateau_commits_the_best_point_of_the_round_and_not_the_last():
    its = course(boost={"plateau": {"patience": 2}})
    state = judged(start(its), 3.0)
    points = []
    for loss in (2.0, 2.5, 2.6):
        state = judged(move(its, state, ones(its)).state, loss)
        points.append(state.theta_LP[0])
    assert state.rounds[0].stale == 2
    after, (ended,) = end_rounds(its, state, [0], at_best=True)
    assert torch.equal(after.stacks[0][0], points[0])
    assert (ended.committed, ended.of_step) == (True, 1)
    assert after.rounds[0].best_loss == 2.0
    assert after.best[0].loss == 2.0


def test_a_round_that_learnt_nothing_is_begun_anew_with_another_adapter():
    its = course(boost={"plateau": {"patience": 1}})
    state = judged(start(its), 3.0)
    for number in (1, 2):
        state = judged(move(its, state, ones(its)).state, 3.5)
        state, (ended,) = end_rounds(its, state, [0], at_best=True)
        assert ended.event()["kind"] == "restart"
        assert not len(state.stacks[0])
        assert torch.equal(state.theta_LP[0], fresh(LAYOUT, Key.of(0), number))
        assert state.rounds[0].best_loss == 3.0


def test_a_shrunken_commit_has_a_loss_that_nobody_knows_yet():
    its = course(boost={"plateau": {"patience": 1}, "shrinkage": 0.5})
    state = judged(move(its, judged(start(its), 3.0), ones(its)).state, 2.0)
    after, _ = end_rounds(its, state, [0], at_best=True)
    assert after.rounds[0].best_loss == float("inf")
    (b,) = {float(b.unique()) for _, b in LAYOUT.factors(after.stacks[0][0]).values()}
    assert b == -0.25


@pytest.mark.parametrize("optimiser", ["reset", "keep"])
def test_lanes_end_their_rounds_one_by_one(optimiser):
    its = course(boost={"plateau": {"patience": 1}, "optimiser": optimiser}, lanes=3, momentum=0.9)
    state = judged(start(its), 3.0, 3.0, 3.0)
    state = judged(move(its, state, ones(its)).state, 2.0, 2.0, 4.0)
    state = judged(move(its, state, ones(its)).state, 1.0, 2.5, 4.0)
    stale = [lane.stale for lane in state.rounds]
    assert stale == [0, 1, 2]
    after, ended = end_rounds(its, state, [1, 2], at_best=True)
    assert [each.member for each in ended] == ["seed-1", "seed-2"]
    assert [each.committed for each in ended] == [True, False]
    assert [len(stack) for stack in after.stacks] == [0, 1, 0]
    assert torch.equal(after.theta_LP[0], state.theta_LP[0])
    assert after.rounds[0] is state.rounds[0]
    assert torch.equal(after.moments.first_LP[0], state.moments.first_LP[0])
    assert bool(after.moments.first_LP[1:].any()) == (optimiser == "keep")
    assert after.moments.updates_L == ((2, 0, 0) if optimiser == "reset" else (2, 2, 2))
