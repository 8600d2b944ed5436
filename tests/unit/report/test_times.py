"""The time of a run as people see it: what is shown adds up."""

from __future__ import annotations

import pytest

from weft.core.keys import Key
from weft.report import times
from weft.report.times import KIND_COLOURS, rounded, time_breakdown, times_note, times_table
from weft.runs.timing import KINDS, Breakdown, Phase

EVERY = Breakdown(
    tuple(Phase(name, 100.0 / (n + 1) ** 2, n) for n, name in enumerate(KINDS)), processes=2
)
FOUND = {
    "every phase": EVERY,
    "one": Breakdown((Phase("update", 3.0, 12),)),
    "no time": Breakdown((Phase("other", 0.0, 0),)),
    "hours": Breakdown((Phase("evaluation", 123_456.7, 3840), Phase("other", 0.04, 0))),
}


def number(cell: str) -> float:
    return float(cell.replace(",", "").replace("%", ""))


@pytest.mark.parametrize("found", FOUND.values(), ids=FOUND)
def test_what_the_table_shows_adds_up_to_its_last_line(found):
    table = times_table(found)
    *phases, (_, _, seconds, share, _) = table.rows
    assert [row[0] for row in phases] == [phase.name for phase in found.phases]
    assert sum(number(row[2]) for row in phases) == pytest.approx(number(seconds), abs=1e-9)
    assert number(seconds) == pytest.approx(found.total, abs=0.05)
    if found.total:
        assert sum(number(row[3]) for row in phases) == pytest.approx(number(share), abs=1e-9)
        assert share == "100.0 %"


def test_the_table_says_of_each_phase_its_kind_and_how_often_it_was():
    rows = {row[0]: row for row in times_table(EVERY).rows}
    assert rows["loading data"][1:] == ("one-time", "100.0", "62.5 %", "0")
    assert rows["checkpoint"][1] == "repeated"
    assert rows["other"][1] == rows["other"][4] == ""


@pytest.mark.parametrize("digits", [0, 1, 3])
def test_rounded_numbers_keep_their_sum_and_are_off_by_one_digit_at_most(digits):
    for seed in range(20):
        values = Key.of(seed).numpy().random(13) * 10 ** (seed % 5)
        shown = [number(text) for text in rounded(values.tolist(), digits)]
        assert round(sum(shown), digits) == pytest.approx(round(values.sum(), digits))
        assert max(abs(shown - values)) < 10**-digits
    assert rounded([1.0, 2.0], digits) == [f"{value:.{digits}f}" for value in (1, 2)]


@pytest.mark.parametrize("found", FOUND.values(), ids=FOUND)
def test_a_bar_for_each_phase_whatever_it_took(found, size_of, tmp_path):
    path = tmp_path / "figures" / "time.png"
    time_breakdown(found, path)
    assert size_of(path)[0] > 1000
    assert [each.name for each in path.parent.iterdir()] == ["time.png"]


def test_bars_are_sorted_coloured_by_kind_and_labelled_with_seconds(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(times, "save", lambda figure, path: drawn.append(figure))
    time_breakdown(FOUND["hours"].after(FOUND["one"]), tmp_path / "time.png")
    (axes,) = drawn[0].axes
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert [bar.get_width() for bar in axes.patches] == [123_456.7, 3.0, 0.04]
    assert colours[0] == colours[1] != colours[2]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "evaluation",
        "update",
        "other",
    ]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["123,456.7 s   100.0 %", "3.0 s   0.0 %", "0.0 s   0.0 %"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["repeated", "other"]


def test_every_kind_has_a_colour_of_its_own():
    assert set(KIND_COLOURS) == set(KINDS.values())
    assert len(set(KIND_COLOURS.values())) == len(KIND_COLOURS)


def test_what_the_seconds_are_not_of_is_said():
    assert times_note(FOUND["one"]) == ""
    assert "Of 2 processes" in times_note(EVERY)
    part = Breakdown((), since_step=12, runs=3)
    assert times_note(part) == (
        "Nothing is known of the steps before step 13. 3 runs trained together: these are the "
        "seconds of all of them."
    )
