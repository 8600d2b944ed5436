"""Figures are whole PNG files, whatever a run logged."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from weft.analysis.experiment import Line
from weft.core.keys import Key
from weft.report import plots
from weft.report.canvas import spread
from weft.report.plots import Curve, arms_loss, loss_curve, running_mean


def member(label, steps=60, held_out=True, loss=lambda step: 3 / step**0.2):
    train = [(step, loss(step)) for step in range(1, steps + 1)]
    return Curve(label, train, [(s, loss(max(s, 1))) for s in range(0, steps + 1, 20) if held_out])


CURVES = {
    "one": [member("a")],
    "no-evaluation": [member("a", held_out=False)],
    "evaluation-only": [Curve("a", (), [(0, 3.0), (10, 2.0)])],
    "one-step": [Curve("a", [(1, 2.0)])],
    "several": [member("a"), member("b"), member("c", held_out=False)],
    "more-than-colours": [member(f"seed {i}") for i in range(20)],
    "not-finite": [member("a", loss=lambda step: 2.0 if step < 30 else math.nan)],
    "diverged": [member("a"), member("b", loss=lambda step: math.inf)],
    "constant": [member("a", loss=lambda step: 0.0)],
    "names-with-markup": [member("$x^$ <b>"), member("a_b^c $")],
    "boosted": [replace(member("a"), perturbed=True, commits=range(10, 61, 10))],
    "several-boosted": [replace(member(n), perturbed=True, commits=(5, 30)) for n in "ab"],
    "nothing": [Curve("a", ())],
}


@pytest.mark.parametrize("curves", CURVES.values(), ids=CURVES)
def test_loss_curve_draws_whatever_was_logged(curves, size_of, tmp_path):
    path = tmp_path / "figures" / "loss.png"
    loss_curve(curves, path)
    width, height = size_of(path)
    assert width > 1200 and height > 600  # sharp on a dense screen
    assert [p.name for p in path.parent.iterdir()] == ["loss.png"]


def arm(end, points=5, commits=0, diverged=False):
    x = tuple(range(0, 100 * points, 100))
    mean = (1.0, *(end,) * (points - 1))
    ticks = tuple((50.0 + n, 0.9) for n in range(commits))
    low, high = (tuple(value + by for value in mean) for by in (-0.1, 0.1))
    return Line(x, mean, low, high, ticks, diverged)


ARMS = {
    "one": {"mezo": arm(0.5)},
    "several": {"mezo": arm(0.5), "boosted": arm(0.6, commits=4), "$x^$ <b>": arm(0.7)},
    "more-than-colours": {f"arm {i}": arm(0.5) for i in range(20)},
    "one-point": {"mezo": arm(0.5, points=1)},
    "diverged": {"mezo": arm(0.5), "wild": arm(1e9, diverged=True)},
    "all-diverged": {"wild": arm(math.inf, diverged=True)},
    "many-commits": {"boosted": arm(0.5, commits=500)},
}


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("lines", ARMS.values(), ids=ARMS)
def test_arms_are_drawn_whatever_became_of_them(lines, seeds, size_of, tmp_path):
    path = tmp_path / "figures" / "loss.png"
    arms_loss(lines, path, axis="forwards", seeds=seeds)
    width, height = size_of(path)
    assert width > 1200 and height > 700


@pytest.mark.parametrize(
    ("lines", "seeds", "said", "unsaid"),
    [
        ("several", 5, ["mean of 5 seeds, band: lowest to highest", "|: a commit"], ["one seed"]),
        ("one", 1, ["one seed"], ["band", "commit"]),
        ("many-commits", 5, ["band"], ["commit"]),
    ],
)
def test_the_title_names_the_band_and_the_marks(lines, seeds, said, unsaid):
    title = plots._arms_title(ARMS[lines], "loss, nats a token", seeds)
    assert title.startswith("validation loss, nats a token")
    assert all(words in title for words in said)
    assert not any(words in title for words in unsaid)


def test_an_arm_that_diverges_does_not_flatten_the_others():
    low, high = plots._shown([arm(0.5), arm(1e9, diverged=True)])
    assert 0.3 < low < 0.4 and 1.1 < high < 1.2


def test_the_same_numbers_give_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        loss_curve([member("a")], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("width", [1, 2, 5, 40])
def test_running_mean_matches_the_obvious_loop(width):
    losses = Key.of(0).numpy().normal(size=30)
    losses[[3, 17]] = math.nan, math.inf
    slow = []
    for index in range(30):
        window = losses[max(0, index - width // 2) : index + (width + 1) // 2]
        finite = window[np.isfinite(window)]
        slow.append(finite.mean() if len(finite) else math.nan)
    np.testing.assert_allclose(running_mean(losses, width), slow, rtol=1e-9)


def test_labels_keep_their_order_and_their_distance():
    assert spread([1.0, 2.0, 3.0], gap=0.5, top=9.0) == [1.0, 2.0, 3.0]
    assert spread([1.0, 1.1, 1.2], gap=0.5, top=9.0) == [1.0, 1.5, 2.0]
    assert spread([1.0, 1.1, 1.2], gap=0.5, top=1.2) == pytest.approx([0.2, 0.7, 1.2])
    assert spread([], gap=0.5, top=1.0) == []


def test_drawing_leaves_the_global_state_of_matplotlib_alone():
    code = "import sys, weft.report.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
