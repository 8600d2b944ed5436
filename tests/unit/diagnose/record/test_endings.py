from __future__ import annotations

import pytest

from weft.diagnose.record.endings import Rule

EOS = frozenset({0})


@pytest.mark.parametrize(
    ("rows", "limit", "stop", "ended"),
    [
        # one length: the limit
        ([[1, 2, 3]], 3, (), ["length"]),
        ([[1, 2, 3], [4, 5, 6]], 3, (), ["length", "length"]),
        # end tokens say nothing about a limit
        ([[1, 2, 0], [4, 0]], None, (), ["eos", "eos"]),
        ([[1, 2, 0], [4, 5, 6, 7]], 4, (), ["eos", "length"]),
        # several reach the same length: shorter ones were stopped
        ([[1, 2, 3, 4], [5, 6, 7, 8], [9, 1]], 4, (), ["length", "length", "stop"]),
        # all stopped by one text
        ([[1, 2, 9], [3, 4, 5, 9], [6, 9]], None, (9,), ["stop"] * 3),
        ([[1, 8, 9], [3, 4, 8, 9], [9, 6, 8, 9]], None, (8, 9), ["stop"] * 3),
        # the longest was not
        ([[1, 2, 9], [6, 9], [3, 4, 5, 6, 7]], 5, (9,), ["stop", "stop", "length"]),
        # an end token ended one that has the text, too: it is no stop text
        ([[1, 9], [2, 3, 9], [4, 9, 5, 0]], None, (), ["unknown", "unknown", "eos"]),
        # nothing explains these
        ([[1, 2], [3, 4, 5]], None, (), ["unknown", "unknown"]),
        ([[]], None, (), ["stop"]),
    ],
)
def test_why_texts_ended_shows_in_all_of_them(
    rows: list[list[int]], limit: int | None, stop: tuple[int, ...], ended: list[str]
) -> None:
    rule = Rule.of(rows, EOS)
    assert (rule.limit, rule.stop) == (limit, stop)
    assert [rule.ended(row) for row in rows] == ended
