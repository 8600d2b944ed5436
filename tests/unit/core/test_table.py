from __future__ import annotations

import numpy as np
import pytest

from weft.core.errors import InputError
from weft.core.table import ScoreTable, pair

TABLE = ScoreTable(
    ("a", "b"), ("v:1", "v:2", "v:3"), [[1.0, 6.0, 0.5], [2.0, 2.0, 0.1]], [[1, 3, 0], [1, 3, 1]]
)


def assert_same(one: ScoreTable, other: ScoreTable) -> None:
    assert (one.members, one.ids) == (other.members, other.ids)
    np.testing.assert_array_equal(one.sums, other.sums)
    np.testing.assert_array_equal(one.counts, other.counts)


def test_means_weigh_examples_by_their_count():
    np.testing.assert_array_equal(TABLE.means(), [7.5 / 4, 4.1 / 5])
    assert TABLE.row("a").mean == 7.5 / 4
    np.testing.assert_array_equal(TABLE.row("a").means, [1.0, 2.0, np.nan])


def test_nothing_counted_is_nan_not_zero():
    table = ScoreTable(("a",), ("v:1",), [[0.0]], [[0]])
    assert np.isnan(table.means()[0])
    assert np.isnan(table.row("a").mean)


def test_no_examples():
    table = ScoreTable(("a",), (), np.zeros((1, 0)), np.zeros((1, 0)))
    assert np.isnan(table.row("a").mean)


def test_arrays_get_their_types():
    assert TABLE.sums.dtype == np.float64
    assert TABLE.counts.dtype == np.int64


@pytest.mark.parametrize(
    ("members", "ids"), [(("a",), ("v:1", "v:1")), (("a", "a"), ("v:1",)), (("a",), ("v:1",))]
)
def test_repeated_names_and_wrong_shapes_are_bugs(members, ids):
    with pytest.raises(AssertionError):
        ScoreTable(members, ids, np.zeros((3, 3)), np.zeros((3, 3)))


def test_concat_adds_examples_and_stack_adds_members():
    pieces = [
        ScoreTable(TABLE.members, TABLE.ids[part], TABLE.sums[:, part], TABLE.counts[:, part])
        for part in (slice(0, 2), slice(2, 3))
    ]
    assert_same(ScoreTable.concat(pieces), TABLE)
    rows = [
        ScoreTable((name,), TABLE.ids, TABLE.sums[[index]], TABLE.counts[[index]])
        for index, name in enumerate(TABLE.members)
    ]
    assert_same(ScoreTable.stack(rows), TABLE)


def test_unknown_member_is_told_what_there_is():
    table = ScoreTable(("step-100", "step-200"), (), np.zeros((2, 0)), np.zeros((2, 0)))
    with pytest.raises(
        InputError, match="no member `step-10`; it has step-100, step-200"
    ) as caught:
        table.row("step-10")
    assert "did you mean" in caught.value.hint


def test_pair_joins_by_id_in_the_order_of_the_first():
    other = ScoreTable(("c",), ("v:3", "x", "v:1"), [[30.0, 9.0, 10.0]], [[3, 9, 1]])
    a, c = pair(TABLE.row("b"), other.row("c"))
    assert a.ids == c.ids == ("v:1", "v:3")
    np.testing.assert_array_equal(a.sums, [2.0, 0.1])
    np.testing.assert_array_equal(c.sums, [10.0, 30.0])
    np.testing.assert_array_equal(c.counts, [1, 3])


def test_pair_of_strangers_is_an_input_error():
    other = ScoreTable(("c",), ("x",), [[1.0]], [[1]])
    with pytest.raises(InputError, match="`a` and `c` have no example in common"):
        pair(TABLE.row("a"), other.row("c"))


def test_file_is_exact(tmp_path):
    values = np.array([[0.1 + 0.2, 1e-300, -0.0], [np.nan, np.inf, -np.inf]])
    table = ScoreTable(("a", "b"), ("v:1", "v:2", "é"), values, [[1, 2, 3], [2**40, 0, 1]])
    table.save(tmp_path / "t.jsonl")
    loaded = ScoreTable.load(tmp_path / "t.jsonl")
    assert_same(loaded, table)
    assert np.signbit(loaded.sums[0, 2])


def test_empty_table_keeps_its_members(tmp_path):
    table = ScoreTable(("a", "b"), (), np.zeros((2, 0)), np.zeros((2, 0)))
    table.save(tmp_path / "t.jsonl")
    assert_same(ScoreTable.load(tmp_path / "t.jsonl"), table)


@pytest.mark.parametrize(
    "text",
    ["", '{"step": 1}\n', '{"members": ["a"]}\n{"id": "v:1", "sums": [1, 2], "counts": [1, 2]}\n'],
)
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"t\.jsonl is not a score table"):
        ScoreTable.load(tmp_path / "t.jsonl")


def test_missing_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no score table"):
        ScoreTable.load(tmp_path / "t.jsonl")
