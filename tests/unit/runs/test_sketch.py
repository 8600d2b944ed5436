from __future__ import annotations

import hashlib

import numpy as np
import pytest

from weft.runs.sketch import (
    PROBES,
    PROJECTIONS,
    batch_digest,
    digest,
    labels_digest,
    probes,
    projections,
)


@pytest.mark.parametrize("size", [16, 256, 1024])
def test_probes_and_projections_are_the_same_everywhere(size):
    assert probes(size).shape == (size, PROBES) and probes(size).dtype == np.float32
    assert projections(size).shape == (size, PROJECTIONS)
    assert not np.array_equal(probes(size)[:, 0], probes(size)[:, 1])
    probes.cache_clear()
    again = probes(size)
    assert np.array_equal(again, probes(size))


def test_probes_are_those_that_recordings_have_been_made_with():
    """Others would make old recordings incomparable with new ones."""
    both = probes(64).tobytes() + projections(64).tobytes()
    assert hashlib.sha256(both).hexdigest()[:16] == "d2d6857946422f1e"


def test_projections_keep_lengths_on_average():
    rows = np.random.default_rng(0).standard_normal((2000, 256))
    ratio = np.linalg.norm(rows @ projections(256), axis=1) / np.linalg.norm(rows, axis=1)
    assert np.sqrt((ratio**2).mean()) == pytest.approx(1.0, abs=0.2)
    lengths = np.linalg.norm(probes(256), axis=0)
    assert lengths == pytest.approx(np.ones(PROBES), abs=0.2)


def test_a_sketch_of_a_difference_is_the_difference_of_sketches():
    rng = np.random.default_rng(1)
    one, two = rng.standard_normal((2, 12, 64)).astype(np.float32)
    sketched = one @ probes(64) - two @ probes(64)
    np.testing.assert_allclose(sketched, (one - two) @ probes(64), rtol=1e-4, atol=1e-5)


def test_a_digest_tells_values_dtypes_and_shapes_apart():
    zeros = np.zeros((2, 3), np.float32)
    others = [
        np.zeros((3, 2), np.float32),
        np.zeros((2, 3), np.int32),
        zeros + 1e-30,
        np.negative(zeros),
    ]
    assert len({digest(each) for each in (zeros, *others)}) == 5
    assert digest(zeros) == digest(np.zeros((3, 2), np.float32).T.copy().reshape(2, 3))
    assert digest(np.arange(6).reshape(2, 3).T) == digest(np.arange(6).reshape(2, 3).T.copy())


def test_the_order_of_rows_in_a_batch_does_not_matter_and_their_ids_do():
    rows = [[5, 6, 7], [8, 9]]
    assert batch_digest(rows) == batch_digest(rows[::-1])
    assert batch_digest(rows) != batch_digest([[5, 6], [7, 8, 9]])
    assert batch_digest(rows) != batch_digest([*rows, rows[0]])


def test_labels_belong_to_their_rows_and_the_first_counts_for_nothing():
    rows, labels = [[5, 6, 7], [8, 9, 4]], [[-100, 6, 7], [-100, -100, 4]]
    told = labels_digest(rows, labels)
    assert told == labels_digest(rows[::-1], labels[::-1])
    assert told == labels_digest(rows, [[5, 6, 7], [8, -100, 4]])
    assert told != labels_digest(rows, labels[::-1])
    assert told != labels_digest(rows, [[-100, -100, 7], [-100, -100, 4]])
