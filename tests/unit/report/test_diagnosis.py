"""The page of a diagnosis says what the diagnosis says, and draws the curves that it has."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from weft.diagnose.finding import Cause, Diagnosis, Finding, Outcome, Passage
from weft.report.diagnosis import figures, marks, write_diagnosis

FOUND = Finding(
    5,
    "factor",
    "scale",
    "all 12 adapted modules",
    "B's update is 8 times A's: <alpha> for alpha / r",
    value=8.0,
    floor=0.001,
    where="train_b.py:88",
    fix="pass scale=alpha / r",
)
DIAGNOSIS = Diagnosis(
    "runs/a",
    "runs/b",
    "different",
    FOUND.words,
    (Cause(FOUND, "proven", 0.999, 0.98, ("B with A's scale: 1.84 -> 0.0007 nats",)),),
    FOUND,
    (Outcome("kl", 1.84, 0.0011, "nats", "mean KL at matched positions"),),
    ruled_out=tuple(f"thing {n} is equal" for n in range(20)),
    not_checked=("training: <neither> trained",),
    passages=(Passage(("ask\x00", "ask\x00"), ("SELECT a", "SELECT <b>"), 2),),
)
CURVES = {
    "layers": {
        "names": ["embed", *(f"layers.{i}" for i in range(24))],
        "cumulative": [0.0, *(0.1 * i for i in range(1, 25))],
        "local": [0.0] * 25,
        "floor": 1e-3,
    },
    "positions": {"position": [0, 1, 2], "kl": [0.0, math.nan, math.inf], "floor": None},
    "hidden by position": {"position": [0, 1], "relative": [0.0, 0.2], "floor": 1e-5},
    "prompts": {"prompt": [1, 2], "kl": [0.1, 0.2], "floor": 1e-3},
    "decode": {"step": [1, 2], "kl": [2.0, 1.0]},
    "steps": {"step": [1, 2, 3], "a": [3.0, 2.0, None], "b": [3.0, math.nan, 1.0], "name": "loss"},
}


def written(diagnosis, tmp_path):
    path = tmp_path / "page.html"
    write_diagnosis(path, diagnosis, command="weft diff runs/a runs/b", coverage=["0.1 s"])
    return path.read_text()


def test_the_page_has_verdict_cause_proof_fix_and_command(tmp_path):
    page = written(DIAGNOSIS, tmp_path)
    for text in ("different", "proven", "8,000 times", "1.84 -&gt; 0.0007", "train_b.py:88"):
        assert text in page
    assert "weft diff runs/a runs/b" in page
    assert "1,673" in page  # times the floor


def test_nothing_in_it_is_taken_for_markup(tmp_path):
    page = written(DIAGNOSIS, tmp_path)
    assert "&lt;alpha&gt;" in page
    assert "&lt;neither&gt;" in page
    assert "<b>" not in page


def test_it_loads_nothing(tmp_path):
    page = written(replace(DIAGNOSIS, curves=CURVES), tmp_path)
    assert not re.search(r"<script|https?://|src=\"(?!data:)", page)
    assert page.count("data:image/png;base64,") == len(CURVES)


def test_the_first_word_that_differs_is_marked(tmp_path):
    assert "<mark>&lt;b&gt;</mark>" in written(DIAGNOSIS, tmp_path)


@pytest.mark.parametrize(
    ("a", "b", "marked"),
    [
        ("one two three", "one TWO three", ("two", "TWO")),
        ("one", "one two", ("", " two")),
        ("same", "same", ("", "")),
        ("", "x", ("", "x")),
    ],
)
def test_a_mark_is_the_word_at_the_first_difference(a, b, marked):
    spans = marks(a, b)
    assert tuple(text[m[0] : m[1]] for text, m in zip((a, b), spans, strict=True)) == marked


def test_same_is_as_large_as_different(tmp_path):
    page = written(replace(DIAGNOSIS, verdict="same", causes=(), first=None), tmp_path)
    assert '<p class="answer better">same</p>' in page
    assert '<p class="answer worse">different</p>' in written(DIAGNOSIS, tmp_path)


@pytest.mark.parametrize("name", CURVES)
def test_curves_are_drawn_whatever_is_in_them(name, size_of, tmp_path):
    (figure,) = figures(replace(DIAGNOSIS, curves={name: CURVES[name]}))
    path = tmp_path / "figure.png"
    path.write_bytes(figure.png)
    width, height = size_of(path)
    assert width > 1200 and height > 500


def test_a_curve_of_less_than_two_points_is_not_drawn():
    assert figures(replace(DIAGNOSIS, curves={"steps": {"step": [], "a": [], "b": []}})) == []
    assert figures(replace(DIAGNOSIS, curves={"decode": {"step": [1], "kl": [2.0]}})) == []
