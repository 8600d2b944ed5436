from __future__ import annotations

import pytest

from weft.runs.timing import RateMeter, Stopwatch


def test_names_add_up_also_when_the_block_raises():
    ticks = iter([0.0, 1.0, 10.0, 12.5])
    watch = Stopwatch(clock=lambda: next(ticks))
    with watch("forward"):
        pass
    with pytest.raises(RuntimeError), watch("forward"):
        raise RuntimeError
    assert watch.seconds == {"forward": 3.5}


def test_nested_names_count_in_both():
    ticks = iter([0.0, 1.0, 2.0, 5.0])
    watch = Stopwatch(clock=lambda: next(ticks))
    with watch("step"), watch("forward"):
        pass
    assert watch.seconds == {"forward": 1.0, "step": 5.0}


def test_recent_rate_forgets_and_overall_does_not():
    meter = RateMeter(window=2)
    assert meter.recent == meter.overall == 0.0
    for amount, seconds in [(10, 10), (100, 1), (300, 1)]:
        meter.add(amount, seconds)
    assert meter.recent == 200.0
    assert meter.overall == 410 / 12
