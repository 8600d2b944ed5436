"""Texts side by side: those of one prompt together, those that differ first."""

from __future__ import annotations

import pytest

from tests.support.evidence import Side, pair
from weft.diagnose.compare.passages import first_difference, passages
from weft.runs.evidence import Encoded


@pytest.mark.parametrize(
    ("a", "b", "place"),
    [([1, 2], [1, 2], None), ([1, 2], [1, 3], 2), ([1], [1, 2], 2), ([], [5], 1), ([], [], None)],
)
def test_the_first_difference_is_counted_from_1(a, b, place):
    assert first_difference(a, b) == place


def said(tokens, texts):
    side = Side().add(Encoded(text="ask", ids=(5, 6))).add(Encoded(text="more", ids=(7, 8)))
    return side.generation([(5, 6), (7, 8)], tokens, texts=texts)


def test_completions_of_one_prompt_stand_together_and_unequal_ones_first():
    a = said([(1, 2), (3, 4)], ("one two", "three four"))
    b = said([(1, 2), (3, 9)], ("one two", "three nine"))
    first, second = passages(pair(a, b))
    assert first.prompts == ("more", "more")
    assert first.texts == ("three four", "three nine")
    assert first.token == 2
    assert (second.texts[0], second.token) == ("one two", None)


def test_what_has_no_text_is_shown_by_its_ids():
    a = Side().generation([(5, 6)], [(1, 2)])
    (passage,) = passages(pair(a, a))
    assert passage.prompts[0] == "token ids 5 6"
    assert passage.texts[0] == "token ids 1 2"
