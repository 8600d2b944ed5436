"""A scale is chosen where the rows tell it from all others, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from weft.analysis.scale import BASE, choose
from weft.core.table import ScoreTable
from weft.formats.loaded import ScaleCandidate

CANDIDATES = [ScaleCandidate(20.0, "one"), ScaleCandidate(2.0, "other"), ScaleCandidate(10.0, "3")]
NAMES = ["a", "b", "c"]


def chosen(*means, rows=60, noise=0.1):
    """Losses around these means, of the base and of every candidate, on rows of two tokens."""
    generator = np.random.default_rng(0)
    common = generator.normal(0, 1, rows)  # what makes a row hard for all
    sums = [2 * (m + common + generator.normal(0, noise, rows)) for m in means]
    members = (BASE, *NAMES[: len(means) - 1])
    ids = tuple(map(str, range(rows)))
    table = ScoreTable(members, ids, np.array(sums), np.full((len(means), rows), 2))
    return choose(table, CANDIDATES[: len(means) - 1], members[1:], "rows.jsonl")


def test_the_lowest_loss_comes_first_with_intervals_to_the_others():
    found = chosen(5.0, 3.0, 2.0, 4.0)
    assert [score.scale for score in found.scores] == [2.0, 20.0, 10.0]
    assert found.decided and found.best.above_best is None
    assert found.base_loss == pytest.approx(5.0, abs=0.5)
    for score in found.scores[1:]:
        assert score.above_best.estimate == pytest.approx(score.loss - found.best.loss)
        assert 0 < score.above_best.low < score.above_best.estimate < score.above_best.high
    assert (found.examples, found.supervised_tokens) == (60, 120)


def test_a_near_tie_decides_nothing_even_when_a_third_is_far():
    found = chosen(5.0, 2.0, 2.001, 4.0)
    assert not found.decided
    assert sum(score.above_best.excludes_zero for score in found.scores[1:]) == 1


def test_rows_on_which_the_adapter_does_harm_decide_nothing():
    """The weakest scale would win there, whatever the adapter was trained at."""
    found = chosen(1.0, 2.0, 3.0)
    assert found.scores[1].above_best.excludes_zero
    assert not found.helps and not found.decided


def test_pairing_tells_what_the_spread_between_rows_would_hide():
    assert chosen(5.0, 2.0, 2.2).decided


def test_one_row_and_one_candidate():
    assert not chosen(5.0, 2.0, 3.0, rows=1).decided
    assert chosen(5.0, 2.0).decided
    record = chosen(5.0, 2.0, 3.0).record()
    assert [c["scale"] for c in record["candidates"]] == [20.0, 2.0]
    assert record["candidates"][0]["above_best"] is None
    assert record["data"] == "rows.jsonl"
