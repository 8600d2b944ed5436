"""Figures of rewards: whatever was graded, and with the right names."""

from __future__ import annotations

import math

import pytest

from weft.report import rewards
from weft.report.rewards import Climb, reward_curve


def climb(label="a", steps=20, valid=True, reward=lambda step: -5 / step):
    at = range(1, steps + 1)
    centre = [reward(step) for step in at]
    return Climb(
        label,
        list(at),
        centre,
        [value - 1 for value in centre],
        [0.5] * steps,
        [value + 1 for value in centre],
        [(0, -7.0), (steps, -1.0)] if valid else (),
    )


CLIMBS = {
    "one": [climb()],
    "no-evaluation": [climb(valid=False)],
    "evaluation-only": [Climb("a", (), (), (), (), (), [(0, -1.0), (5, 2.0)])],
    "one-step": [climb(steps=1)],
    "several": [climb("seed-0"), climb("seed-1"), climb("$x^$ <b>", valid=False)],
    "more-than-colours": [climb(f"seed {n}") for n in range(20)],
    "not-graded": [climb(reward=lambda step: math.nan if step % 3 else -1.0)],
    "nothing-graded": [climb(valid=False, reward=lambda step: math.nan)],
    "constant": [climb(reward=lambda step: 0.0)],
    "nothing": [Climb("a", (), (), (), (), ())],
}


@pytest.mark.parametrize("climbs", CLIMBS.values(), ids=CLIMBS)
def test_rewards_are_drawn_whatever_was_graded(climbs, size_of, tmp_path):
    path = tmp_path / "figures" / "reward.png"
    reward_curve(climbs, path)
    width, height = size_of(path)
    assert width > 1200 and height > 600


def drawn(climbs, monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(rewards, "save", lambda figure, path: figures.append(figure))
    reward_curve(climbs, tmp_path / "reward.png")
    (axes,) = figures[0].axes
    return axes


def test_one_run_shows_its_centre_its_population_and_held_out_rows(monkeypatch, tmp_path):
    axes = drawn([climb()], monkeypatch, tmp_path)
    texts = {text.get_text() for text in axes.texts}
    assert texts == {
        "centre -0.25",
        "mean of members -1.25",
        "best member 0.75",
        "held-out -1.00",
    }
    (band,) = axes.collections
    assert band.get_paths()[0].get_extents().y1 == pytest.approx(-0.25 - 1 + 0.5)
    assert "higher is better" in axes.get_title(loc="left")


def test_of_several_runs_each_has_a_colour_and_its_name(monkeypatch, tmp_path):
    axes = drawn([climb("seed-0"), climb("seed-1")], monkeypatch, tmp_path)
    assert {text.get_text() for text in axes.texts} == {
        "seed-0: held-out -1.00",
        "seed-1: held-out -1.00",
    }
    assert len({line.get_color() for line in axes.lines}) == 2
    assert not axes.collections
