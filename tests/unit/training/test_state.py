"""The state on disk is the state, to the last bit."""

import pytest
import torch

from weft.core.errors import InputError
from weft.methods.boosting import Rounds
from weft.methods.optimise import Moments
from weft.training.state import FILE, Best, State

P = 7


def rows(count, seed):
    return torch.randn(count, P, generator=torch.Generator().manual_seed(seed))


def example():
    """Lanes with three commits and with none, and an evaluation that nobody has made yet."""
    theta_LP, best_LP = rows(2, 0), rows(2, 1)
    return State(
        17,
        theta_LP,
        Moments((17, 3), rows(2, 2), rows(2, 3).abs()),
        (
            Rounds(rows(3, 4), best_LP[0], 4, 12, 0.1 + 0.2, 13, 2),
            Rounds(rows(0, 5), best_LP[1]),
        ),
        (Best(rows(1, 6)[0], 1 / 3, 9, 2), Best(rows(1, 7)[0])),
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return all(same(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    return a == b


def test_what_is_loaded_is_what_was_saved(tmp_path):
    state = example()
    state.save(tmp_path)
    assert same(State.load(tmp_path, torch.device("cpu")), state)
    assert not same(State.load(tmp_path, torch.device("cpu")), State.fresh(state.theta_LP))


def test_a_fresh_state_has_done_nothing(tmp_path):
    state = State.fresh(rows(2, 0))
    assert [len(stack) for stack in state.stacks] == [0, 0]
    state.save(tmp_path)
    assert same(State.load(tmp_path, torch.device("cpu")), state)


@pytest.mark.parametrize("damage", [lambda data: data[:50], lambda data: b"", lambda data: None])
def test_a_file_that_is_no_state_is_named(damage, tmp_path):
    example().save(tmp_path)
    content = damage((tmp_path / FILE).read_bytes())
    (tmp_path / FILE).unlink()
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(InputError, match="is not a checkpoint of this Weft"):
        State.load(tmp_path, torch.device("cpu"))


def test_an_evaluation_is_judged_lane_by_lane():
    state = State.fresh(rows(2, 0)).judged((2.0, 2.0)).judged((1.0, 3.0))
    assert [best.loss for best in state.best] == [1.0, 2.0]
    assert [lane.stale for lane in state.rounds] == [0, 1]


def test_the_best_adapter_remembers_how_many_commits_lay_below_it():
    state = example().judged((0.01, 0.5))
    assert [best.commits for best in state.best] == [3, 0]
    assert torch.equal(state.best[0].theta_P, state.theta_LP[0])
    assert state.best[0].step == 17
