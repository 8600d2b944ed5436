"""Where two texts or two rows of ids part."""

from __future__ import annotations

from weft.diagnose.rungs.spans import frame, quoted, spans


def test_texts_part_at_words() -> None:
    (span,) = spans("how many rows are there", "how many columns are there")
    assert (span.a, span.b, span.start, span.stop) == ("rows", "columns", 9, 13)
    assert not span.cut


def test_spans_that_nearly_touch_are_one() -> None:
    (span,) = spans("a small house stands", "a big castle stands")
    assert (span.a, span.b) == ("small house", "big castle")


def test_spans_far_apart_are_several() -> None:
    found = spans((1, 2, 3, 4, 5, 6, 7), (9, 2, 3, 4, 5, 6, 8))
    assert [(span.a, span.b, span.at_start, span.at_end) for span in found] == [
        ((1,), (9,), True, False),
        ((7,), (8,), False, True),
    ]


def test_what_is_missing_at_an_end_is_cut() -> None:
    (span,) = spans((1, 2, 3, 4), (1, 2))
    assert (span.a, span.b, span.at_end, span.cut) == ((3, 4), (), True, True)


def test_equal_texts_have_no_spans() -> None:
    assert spans("same", "same") == []


def test_special_ids_at_both_ends_are_the_frame() -> None:
    assert frame((1, 1, 5, 1, 6, 2), {1, 2}) == ((1, 1), (5, 1, 6), (2,))


def test_texts_are_shown_short_and_without_control_characters() -> None:
    assert quoted("a\x1b[31mb\n") == r"'a\x1b[31mb\n'"
    assert len(quoted("x" * 500)) < 60
    assert quoted((7,)) == "token 7"
    assert quoted(()) == "nothing"
