from __future__ import annotations

import numpy as np

from weft.core.batch import IGNORE, Batch, Example, batches_of, even_spans


def example(id: str, labels: list[int]) -> Example:
    return Example(id, np.arange(len(labels)), np.array(labels))


def test_first_position_is_never_scored():
    one = example("v:1", [5, IGNORE, 7, 8])
    assert (one.tokens, one.supervised) == (4, 2)


def test_what_follows_the_last_supervised_token_need_not_be_read_nor_that_token():
    assert example("v:1", [IGNORE, 5, IGNORE, 8]).read == 3
    assert example("v:1", [IGNORE, 5, IGNORE, 8, IGNORE, IGNORE]).read == 3
    assert example("v:1", [IGNORE, 5, IGNORE]).read == 1
    assert example("v:1", [IGNORE, IGNORE, IGNORE]).read == 3  # a prompt: something will follow
    assert example("v:1", [5, IGNORE]).read == 2


def test_batches_cover_every_example_once_in_order():
    examples = [example(f"v:{i}", [IGNORE, 1, 2]) for i in range(5)]
    batches = list(batches_of(examples, 2))
    assert [batch.ids for batch in batches] == [("v:0", "v:1"), ("v:2", "v:3"), ("v:4",)]
    assert sum(batch.tokens for batch in batches) == 15
    assert sum(batch.supervised for batch in batches) == 10
    assert [micro.ids for micro in Batch(tuple(examples)).micro(4)] == [
        ("v:0", "v:1", "v:2", "v:3"),
        ("v:4",),
    ]


def test_even_spans_are_as_few_as_cover_the_count_and_of_like_sizes():
    assert even_spans(31, 8) == [(0, 7), (7, 15), (15, 23), (23, 31)]
    assert even_spans(8, 8) == [(0, 8)]
    assert even_spans(3, 8) == [(0, 3)]
    assert even_spans(0, 8) == []
