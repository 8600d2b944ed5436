"""What belongs together: rows by their ids, whatever batch and padding they came in."""

from __future__ import annotations

import numpy as np

from tests.support.adapters import NAMES, adapted, adapter
from tests.support.evidence import Side, pair
from weft.diagnose.compare.align import (
    completions,
    modules,
    pad_ids,
    prompt_rows,
    steps,
    train_rows,
)
from weft.diagnose.compare.matching import contains, matched
from weft.runs.evidence import Encoded, TokenizerSeen, TrainStep

TOKENIZER = TokenizerSeen(name="t", size=9, vocabulary="v", template=None, special={"pad": 0})


def rows(a: Side, b: Side) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(x.ids, y.ids) for x, y in prompt_rows(pair(a, b)).pairs]


def test_rows_of_a_batch_are_found_in_batches_of_one_in_another_order() -> None:
    a = Side().add(TOKENIZER).forward([[0, 0, 5, 6], [7, 8, 9, 5]], mask=[[0, 0, 1, 1], [1] * 4])
    b = Side().add(TOKENIZER).forward([[7, 8, 9, 5]]).forward([[5, 6]])
    assert rows(a, b) == [((5, 6), (5, 6)), ((7, 8, 9, 5), (7, 8, 9, 5))]
    assert prompt_rows(pair(a, b)).exact == 2


def test_the_pad_id_is_known_from_the_tokenizer_or_from_what_masks_hide() -> None:
    hidden = Side().forward([[9, 9, 5, 6]], mask=[[0, 0, 1, 1]])
    assert pad_ids(pair(Side().add(TOKENIZER), hidden)) == {0, 9}


def test_a_row_that_ends_like_padding_keeps_what_its_text_has() -> None:
    text = Encoded(text="x", ids=(5, 6, 0))
    side = Side().add(TOKENIZER).add(text).forward([[5, 6, 0, 0, 0]])
    assert rows(side, side) == [((5, 6, 0), (5, 6, 0))]


def test_arrays_of_a_row_are_those_of_its_real_tokens() -> None:
    side = Side().forward(
        [[0, 0, 5, 6], [7, 8, 9, 5]],
        mask=[[0, 0, 1, 1], [1] * 4],
        positions=[[0, 0, 0, 1], [0, 1, 2, 3]],
        labels=[[-100, -100, -100, 6], [-100, -100, 9, 5]],
        logits=np.arange(6).reshape(2, 3),
        nll=[[1, 2, 3], [4, 5, 6]],
    )
    row = prompt_rows(pair(side, side)).pairs[0][0]
    assert (row.start, row.stop, row.padding, row.attended_padding) == (2, 4, 2, 0)
    assert row.positions is not None and row.positions.tolist() == [0, 1]
    assert row.labels is not None and row.labels.tolist() == [-100, 6]
    assert row.nll is not None and row.nll.tolist() == [3]
    assert row.logits is not None and row.logits.tolist() == [0, 1, 2]


def test_steps_of_decoding_are_no_prompts() -> None:
    side = Side().forward([[5, 6]]).forward([[5, 6, 7]]).generation([[5, 6]], [[7]], passes=(0, 1))
    assert rows(side, side) == [((5, 6), (5, 6))]


def test_what_equals_nothing_is_matched_by_containment_and_then_by_order() -> None:
    a = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    b = [(9, 9), (0, 4, 5, 6), (1, 2, 3), (8, 8)]
    found = matched(a, b, key=lambda ids: ids)
    assert found.pairs == (((1, 2, 3), (1, 2, 3)), ((4, 5, 6), (0, 4, 5, 6)), ((7, 8, 9), (9, 9)))
    assert (found.exact, found.only_a, found.only_b) == (1, (), ((8, 8),))


def test_containment_is_one_insertion_or_a_frame() -> None:
    assert contains((1, 2, 3), (1, 9, 2, 3))
    assert contains((1, 2, 3), (8, 1, 2, 3, 9))
    assert not contains((1, 2, 3), (1, 8, 2, 9, 3))
    assert not contains((), (1,))


def test_completions_are_matched_by_their_prompts() -> None:
    a = Side().add(TOKENIZER).generation([[5, 6], [7, 8]], [[1], [2]])
    b = Side().generation([[0, 7, 8]], [[3]]).generation([[5, 6]], [[4]])
    said = [(x.tokens, y.tokens) for x, y in completions(pair(a, b)).pairs]
    assert said == [((1,), (4,)), ((2,), (3,))]


def test_of_a_step_that_was_taken_again_the_last_counts() -> None:
    a = Side().add(TrainStep(step=1, loss=9.0)).add(TrainStep(step=1, loss=2.0))
    b = Side().add(TrainStep(step=1, loss=2.0)).add(TrainStep(step=2, loss=1.0))
    found = steps(pair(a, b))
    assert [(x.loss, y.loss) for x, y in found.pairs] == [(2.0, 2.0)]
    assert [each.step for each in found.only_b] == [2]


def test_rows_of_training_are_matched_whatever_the_step() -> None:
    a, b = (
        Side()
        .forward([first], phase="train", grad=True)
        .forward([second], phase="train", grad=True)
        for first, second in (([5, 6], [7, 8]), ([7, 8], [5, 6]))
    )
    assert train_rows(pair(a, b)).exact == 2


FRAME = [1, 2, 3]


def trained(*rows: list[int]) -> Side:
    side = Side()
    for row in rows:
        side.forward([[*FRAME, *row]], phase="train", grad=True)
    return side


def test_rows_that_share_only_their_template_are_of_different_records() -> None:
    a = trained([10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33])
    b = trained([40, 41, 42, 43], [50, 51, 52, 53], [60, 61, 62, 63])
    assert train_rows(pair(a, b)).pairs == ()


def test_rows_that_share_a_part_of_their_contents_belong_together() -> None:
    a = trained([10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33])
    b = trained([30, 31, 72, 73], [10, 11, 92, 93], [20, 21, 82, 83])
    firsts = [(x.ids[3], y.ids[3]) for x, y in train_rows(pair(a, b)).pairs]
    assert firsts == [(10, 10), (20, 20), (30, 30)]


def test_modules_are_matched_by_what_follows_the_prefix_of_their_blocks() -> None:
    short = {name.removeprefix("model."): lora for name, lora in adapter().items()}
    a = adapted(Side(), adapter()).evidence.snapshots[0]
    b = adapted(Side(), short).evidence.snapshots[0]
    assert modules(a, b).pairs == tuple((name, name.removeprefix("model.")) for name in NAMES)
