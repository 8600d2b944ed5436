"""Figures are whole PNG files, whatever a run logged."""

from __future__ import annotations

import math
import struct
import subprocess
import sys

import numpy as np
import pytest

from weft.core.keys import Key
from weft.report.plots import Curve, loss_curve, running_mean, spread, time_breakdown


def size_of(path):
    """Width and height of a PNG file."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", data[16:24])


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
    "nothing": [Curve("a", ())],
}


@pytest.mark.parametrize("curves", CURVES.values(), ids=CURVES)
def test_loss_curve_draws_whatever_was_logged(curves, tmp_path):
    path = tmp_path / "figures" / "loss.png"
    loss_curve(curves, path)
    width, height = size_of(path)
    assert width > 1200 and height > 600  # sharp on a dense screen
    assert [p.name for p in path.parent.iterdir()] == ["loss.png"]


def test_the_same_numbers_give_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        loss_curve([member("a")], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("seconds", "total"),
    [
        ({"forward": 3.0, "backward": 61.0, "data": 0.02}, 70.0),
        ({f"part {i}": float(i) for i in range(30)}, None),
        ({"forward": 0.0}, None),
        ({"forward": 9000.0}, 9000.0),
    ],
)
def test_time_breakdown_draws(seconds, total, tmp_path):
    time_breakdown(seconds, tmp_path / "time.png", total=total)
    assert size_of(tmp_path / "time.png")[0] > 1000


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
