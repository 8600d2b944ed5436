from __future__ import annotations

import pytest

from weft.core.errors import InputError
from weft.runs.timing import KINDS, WHOLE, Breakdown, Phase, RateMeter, Stopwatch


class Ticks:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def ticks():
    return Ticks()


def seconds(found: Breakdown) -> dict[str, float]:
    return {phase.name: phase.seconds for phase in found.phases}


def test_a_phase_adds_up_also_when_its_block_raises(ticks):
    watch = Stopwatch(ticks)
    with watch("update"):
        ticks.spend(1.0)
    with pytest.raises(RuntimeError), watch("update"):
        ticks.spend(2.5)
        raise RuntimeError
    assert watch.breakdown().phases[0] == Phase("update", 3.5, 2)


def test_each_second_is_in_one_phase(ticks):
    """A nested phase's seconds are not the outer one's, and what is in none is `other`."""
    watch = Stopwatch(ticks)
    ticks.spend(1)
    with watch("update"):
        ticks.spend(10)
        with watch("evaluation"):
            ticks.spend(100)
        ticks.spend(20)
    ticks.spend(2)
    found = watch.breakdown()
    assert seconds(found) == {"evaluation": 100, "update": 30, "other": 3}
    assert found.total == ticks.now == 133
    assert sum(found.shares) == pytest.approx(1, abs=1e-15)
    assert [phase.kind for phase in found.phases] == ["repeated", "repeated", "other"]


@pytest.mark.parametrize("whole", WHOLE)
def test_what_a_whole_phase_consists_of_is_not_counted_elsewhere(whole, ticks):
    watch = Stopwatch(ticks)
    with watch(whole):
        ticks.spend(1)
        with watch("evaluation"), watch("grading"):
            ticks.spend(2)
        ticks.spend(3)
    assert watch.breakdown().phases[0] == Phase(whole, 6, 1)


def test_a_breakdown_can_be_taken_while_a_phase_is_open(ticks):
    watch = Stopwatch(ticks)
    with watch("checkpoint"):
        ticks.spend(1)
        assert seconds(watch.breakdown())["checkpoint"] == 1
        ticks.spend(1)
    assert seconds(watch.breakdown())["checkpoint"] == 2


def test_a_phase_that_nobody_declared_is_a_mistake_of_ours(ticks):
    with pytest.raises(AssertionError, match="`lunch` is not a phase"), Stopwatch(ticks)("lunch"):
        pass


def test_the_longest_comes_first():
    found = breakdown(other=5, update=3, checkpoint=9)
    assert [phase.name for phase in found.phases] == ["checkpoint", "other", "update"]


def breakdown(since_step=0, runs=1, **parts) -> Breakdown:
    ticks = Ticks()
    watch = Stopwatch(ticks, runs=runs)
    for name, its in parts.items():
        if name == "other":
            ticks.spend(its)
            continue
        with watch(name):
            ticks.spend(its)
    return watch.breakdown(since_step)


def test_processes_of_one_run_add_up():
    found = breakdown(since_step=8, update=1, loading=2).after(breakdown(update=5, other=1, runs=3))
    assert seconds(found) == {"update": 6, "loading": 2, "other": 1}
    assert {phase.name: phase.count for phase in found.phases} == {
        "update": 2,
        "loading": 1,
        "other": 0,
    }
    assert (found.since_step, found.processes, found.runs) == (0, 2, 3)


def test_a_breakdown_is_read_as_it_was_written():
    found = breakdown(since_step=3, runs=2, update=0.1, loading=0.7, other=1e-9)
    record = found.record()
    assert Breakdown.of(record, "x") == found
    assert record["total_seconds"] == found.total
    assert sum(part["share"] for part in record["phases"]) == pytest.approx(1, abs=1e-15)
    assert record["phases"][0] | {"share": 1, "seconds": 1} == {
        "name": "loading",
        "kind": KINDS["loading"],
        "seconds": 1,
        "share": 1,
        "count": 1,
    }


def test_a_run_of_no_time_has_shares():
    assert breakdown(update=0).shares == (0, 0)


@pytest.mark.parametrize(
    "record",
    [
        {"since_step": 0, "seconds": {"update": 1.0}},
        [],
        breakdown(update=1).record() | {"phases": [{"name": "lunch", "seconds": 1, "count": 1}]},
    ],
)
def test_what_is_no_breakdown_is_said(record):
    with pytest.raises(InputError, match=r"x\.json is not a time breakdown of this Weft"):
        Breakdown.of(record, "x.json")


def test_recent_rate_forgets_and_overall_does_not():
    meter = RateMeter(window=2)
    assert meter.recent == meter.overall == 0.0
    for amount, seconds in [(10, 10), (100, 1), (300, 1)]:
        meter.add(amount, seconds)
    assert meter.recent == 200.0
    assert meter.overall == 410 / 12
