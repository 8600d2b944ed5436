"""Which rows a step sees."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from weft.core.batch import Example
from weft.core.keys import Key
from weft.data.stream import batch_at, cycle_at, order, steps_per_epoch

KEY = Key.of(0)
EXAMPLES = [Example(f"train:{i}", np.array([i, i]), np.array([-100, i])) for i in range(1, 11)]


def ids(step: int, key: Key = KEY) -> tuple[str, ...]:
    return batch_at(EXAMPLES, step, 4, key).ids


@pytest.mark.parametrize(("n", "size", "steps"), [(8, 4, 2), (9, 4, 3), (3, 4, 1), (1, 1, 1)])
def test_the_last_batch_of_an_epoch_counts_as_a_step(n: int, size: int, steps: int) -> None:
    assert steps_per_epoch(n, size) == steps


@pytest.mark.parametrize("epoch", range(3))
def test_every_epoch_sees_every_row_once(epoch: int) -> None:
    seen = [i for step in range(3 * epoch, 3 * epoch + 3) for i in ids(step)]
    assert sorted(seen) == sorted(e.id for e in EXAMPLES)
    assert [len(ids(step)) for step in range(3)] == [4, 4, 2]


def test_a_step_does_not_depend_on_which_were_asked_before() -> None:
    forwards = [ids(step) for step in range(9)]
    backwards = [ids(step) for step in reversed(range(9))]
    assert forwards == backwards[::-1]


def test_epochs_differ_in_order_and_so_do_seeds() -> None:
    orders = {tuple(order(key, epoch, 10)) for key in (KEY, Key.of(1)) for epoch in range(3)}
    assert len(orders) == 6


def test_an_order_is_a_permutation_and_repeats() -> None:
    first, second = order(KEY, 5, 100), order(KEY, 5, 100)
    assert sorted(first) == list(range(100))
    np.testing.assert_array_equal(first, second)


def test_a_batch_larger_than_the_data_is_the_data() -> None:
    assert sorted(batch_at(EXAMPLES, 7, 64, KEY).ids) == sorted(e.id for e in EXAMPLES)


def test_the_stream_leaves_numpys_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    ids(3)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def cycled(step: int, size: int | None) -> list[int]:
    return [int(id.removeprefix("train:")) for id in cycle_at(EXAMPLES, step, size).ids]


def test_a_cycle_goes_through_the_rows_in_order_and_begins_again() -> None:
    assert [cycled(step, 4) for step in range(3)] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 1, 2]]
    assert cycled(3, 4) == [3, 4, 5, 6]
    assert cycled(10**9, 4) == cycled(10**9 % 5, 4)


def test_a_cycle_of_1600_rows_by_128_is_two_passes_in_25_steps() -> None:
    rows = [Example(str(i), *[np.array([1, 1])] * 2) for i in range(1600)]
    seen = Counter(id for step in range(25) for id in cycle_at(rows, step, 128).ids)
    assert len(seen) == 1600
    assert set(seen.values()) == {2}


@pytest.mark.parametrize("size", [None, 10, 11, 1000])
def test_a_cycle_without_size_or_with_a_large_one_is_all_rows(size: int | None) -> None:
    assert cycled(0, size) == cycled(7, size) == list(range(1, 11))


def test_an_order_is_remembered_and_cannot_be_changed() -> None:
    again = order(KEY, 1, 10)
    assert again is order(KEY, 1, 10)
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 3
