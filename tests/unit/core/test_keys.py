from __future__ import annotations

import numpy as np

from weft.core.keys import Key


def draws(key: Key) -> np.ndarray:
    return key.numpy().standard_normal(4)


def test_same_path_same_draw():
    key = Key.of(0).fold("order", 3)
    np.testing.assert_array_equal(draws(key), draws(Key.of(0).fold("order", 3)))


def test_fold_is_a_path():
    assert Key.of(0).fold("a", 1) == Key.of(0).fold("a").fold(1)


def test_every_part_counts():
    root = Key.of(0)
    keys = {
        root,
        Key.of(1),
        root.fold("a"),
        root.fold("b"),
        root.fold("a", 0),
        root.fold("a", 1),
        root.fold("a", "1"),
        root.fold("a", -1),
        root.fold("ab"),
        root.fold("a", "b"),
        root.fold("b", "a"),
    }
    assert len(keys) == 11


def test_values_are_pinned():
    """Runs are reproducible across releases: these numbers never change."""
    assert Key.of(0).value == 18368947565975613882
    assert Key.of(0).fold("order", 3).value == 1179725172236226796
