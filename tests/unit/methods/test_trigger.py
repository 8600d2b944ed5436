"""When rounds end."""

import pytest

from weft.methods.config import BoostConfig, PlateauConfig
from weft.methods.trigger import trigger

STEPS, EPOCH = 2000, 125


def commits(boost, steps=STEPS):
    rule = trigger(boost, steps, EPOCH)
    found = [step for step in range(1, steps + 1) if rule.due(step)]
    assert rule.expected(steps) == len(found)
    return found


@pytest.mark.parametrize("every", [1, 7, 10, 100, 300, 999, 1000, 1999])
def test_commits_are_as_many_as_whole_intervals(every):
    found = commits(BoostConfig(steps_per_iteration=every))
    assert len(found) == STEPS // every
    assert found[0] == every


@pytest.mark.parametrize("every", [2000, 2001, 100_000])
def test_an_interval_that_is_not_shorter_than_the_run_never_commits(every):
    assert commits(BoostConfig(steps_per_iteration=every)) == []
    text = trigger(BoostConfig(steps_per_iteration=every), STEPS, EPOCH).text
    assert text == f"never: every {every:,} steps is not within 2,000 steps"


def test_zero_is_never():
    assert commits(BoostConfig()) == []
    assert commits(BoostConfig(steps_per_iteration=0, merge_frequency=0)) == []
    assert trigger(BoostConfig(), STEPS, EPOCH).text == "never"


@pytest.mark.parametrize("frequency", [1, 2, 5])
def test_epochs_count_where_steps_do_not(frequency):
    found = commits(BoostConfig(merge_frequency=frequency))
    assert found == list(range(frequency * EPOCH, STEPS + 1, frequency * EPOCH))


@pytest.mark.parametrize("every", [100, 3000])
def test_steps_win_over_epochs_and_that_is_said(every):
    """Also where the interval never ends within the run: epochs do not come in through the back."""
    found = commits(BoostConfig(steps_per_iteration=every, merge_frequency=1))
    assert found == commits(BoostConfig(steps_per_iteration=every))
    rule = trigger(BoostConfig(steps_per_iteration=every, merge_frequency=1), STEPS, EPOCH)
    assert rule.ignored == (
        f"`boost.merge_frequency` 1 is not used: `boost.steps_per_iteration` {every} decides"
    )


def test_a_plateau_is_not_counted_in_steps():
    rule = trigger(BoostConfig(plateau=PlateauConfig(patience=2)), STEPS, EPOCH)
    assert (rule.patience, rule.expected(STEPS)) == (2, None)
    assert not any(rule.due(step) for step in range(1, STEPS))
