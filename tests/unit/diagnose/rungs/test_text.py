"""Rung 2: texts, token ids, masks, positions and labels, row by row and without padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.evidence import Side, pair
from weft.diagnose.finding import Finding, Looked
from weft.diagnose.rungs.text import look
from weft.diagnose.sides.evidence import Pair
from weft.runs.evidence import Encoded, Slot, TokenizerSeen, TrainStep

BOS, EOS, PAD = 1, 2, 0
SPECIAL = {"bos": BOS, "eos": EOS, "pad": PAD}
QUESTIONS = ["who wrote the book ?", "how many rows are there ?", "what is its name ?"]
VOCABULARY: dict[str, int] = {}


def ids_of(text: str) -> tuple[int, ...]:
    """One id a word, the same in every test."""
    return tuple(VOCABULARY.setdefault(word, len(VOCABULARY) + 10) for word in text.split())


def tokenizer(**fields: Any) -> TokenizerSeen:
    plain = {"name": "t", "size": 99, "vocabulary": "v", "template": None, "special": SPECIAL}
    return TokenizerSeen(**plain | fields)


def side(
    texts: list[str],
    lead: tuple[int, ...] = (BOS,),
    ids: list[tuple[int, ...]] | None = None,
    slots: list[tuple[Slot, ...]] | None = None,
    forward: bool = True,
    full: int | None = None,
    **seen: Any,
) -> Side:
    """Texts that were encoded, and read one by one."""
    made = Side().add(tokenizer(**seen))
    rows = [lead + ids_of(text) for text in texts] if ids is None else ids
    for number, (text, row) in enumerate(zip(texts, rows, strict=True)):
        made.add(
            Encoded(
                text=text,
                ids=row,
                slots=slots[number] if slots else (),
                full_length=full,
                truncation_side=seen.get("truncation_side"),
                where="ask.py:5",
            )
        )
    for row in rows:
        if forward:
            made.forward([row])
    return made


def batch(rows: list[tuple[int, ...]], left: bool = True, **fields: Any) -> Side:
    """One padded batch with its mask."""
    width = max(map(len, rows))
    pads = [(PAD,) * (width - len(row)) for row in rows]
    whole = [p + r if left else r + p for p, r in zip(pads, rows, strict=True)]
    ones = [(1,) * len(row) for row in rows]
    mask = [
        (0,) * len(p) + o if left else o + (0,) * len(p) for p, o in zip(pads, ones, strict=True)
    ]
    return Side().add(tokenizer()).forward(whole, **({"mask": mask} | fields))


def seen(a: Side, b: Side) -> Looked:
    return look(pair(a, b))


def only(found: Looked) -> Finding:
    factors = [each for each in found.findings if each.nature == "factor"]
    assert len(factors) == 1, [each.words for each in factors]
    return factors[0]


def test_equal_ids_are_ruled_out_with_prompts_and_tokens() -> None:
    found = seen(side(QUESTIONS), side(QUESTIONS))
    assert found.findings == ()
    assert "token ids equal: 3 of 3 prompts, 19 tokens" in found.equal


def test_batches_their_order_and_their_padding_make_no_difference() -> None:
    rows = [(BOS, *ids_of(text)) for text in QUESTIONS]
    for other in (batch(rows), batch(rows[::-1]), batch(rows, left=False)):
        found = seen(side(QUESTIONS), other)
        assert found.findings == ()
        assert "token ids equal: 3 of 3 prompts, 19 tokens" in found.equal


def test_a_second_bos_is_named_as_that() -> None:
    factor = only(seen(side(QUESTIONS), side(QUESTIONS, lead=(BOS, BOS))))
    assert (factor.label, factor.place) == ("tokens", "all 3 prompts, token 2")
    assert "B has BOS twice" in factor.words


def test_a_missing_bos_is_a_matter_of_tokens() -> None:
    factor = only(seen(side(QUESTIONS), side(QUESTIONS, lead=())))
    assert factor.label == "tokens"
    assert "BOS (1) in A, none in B" in factor.words


def test_a_frame_that_all_prompts_lack_is_a_template() -> None:
    framed = [f"question : {text} answer :" for text in QUESTIONS]
    found = seen(side(framed), side([text.removesuffix(" answer :") for text in framed]))
    factor = only(found)
    assert (factor.label, factor.place) == ("template", "all 3 prompts")
    assert "A has ' answer :' at the end, and B has not" in factor.words
    assert factor.where == "ask.py:5"


def test_a_frame_is_seen_in_ids_alone() -> None:
    framed = [ids_of(f"{text} answer :") for text in QUESTIONS]
    bare = [ids_of(text) for text in QUESTIONS]
    factor = only(seen(batch(framed), batch(bare)))
    assert (factor.label, factor.place) == ("template", "all 3 prompts")


def slot(text: str, value: str, record: str) -> tuple[Slot, ...]:
    start = text.index(value)
    return (Slot(start=start, stop=start + len(value), record=record, field="table"),)


def test_a_slot_that_holds_another_record_is_data_and_both_records_are_named() -> None:
    tables = ["city rome", "city oslo", "city lima"]
    right = [f"given {t} : {q}" for t, q in zip(tables, QUESTIONS, strict=True)]
    wrong = [right[0], f"given {tables[2]} : {QUESTIONS[1]}", right[2]]
    factor = only(
        seen(
            side(right, slots=[slot(x, t, f"tables.jsonl:{n}") for n, (x, t) in
                               enumerate(zip(right, tables, strict=True), 1)]),
            side(wrong, slots=[slot(x, t, f"tables.jsonl:{n}") for n, (x, t) in
                               zip((1, 3, 3), zip(wrong, (tables[0], tables[2], tables[2]),
                                                  strict=True), strict=True)]),
        )
    )  # fmt: skip
    assert (factor.label, factor.place) == ("data", "prompt 2, token 4")
    assert "`table` holds another record's value" in factor.words
    assert "tables.jsonl:2 in A, tables.jsonl:3 in B" in factor.words


def test_other_contents_are_data() -> None:
    changed = [QUESTIONS[0], "how many columns are there ?", QUESTIONS[2]]
    factor = only(seen(side(QUESTIONS), side(changed)))
    assert (factor.label, factor.place) == ("data", "prompt 2, token 4")
    assert "'rows' in A, 'columns' in B" in factor.words


def test_a_template_and_a_record_are_two_causes() -> None:
    framed = [f"{text} answer :" for text in QUESTIONS]
    changed = [framed[0], "how many columns are there ? answer :", framed[2]]
    bare = [text.removesuffix(" answer :") for text in changed]
    labels = {each.label for each in seen(side(framed), side(bare)).findings}
    assert labels == {"template", "data"}


def test_the_start_and_the_end_of_a_long_text_is_a_truncation() -> None:
    texts = [" ".join(f"w{k}.{n}" for n in range(60)) for k in range(3)]
    whole = [ids_of(text) for text in texts]
    first = side(texts, ids=[row[:40] for row in whole], full=60, truncation_side="right")
    last = side(texts, ids=[row[-40:] for row in whole], full=60, truncation_side="left")
    factor = only(seen(first, last))
    assert factor.label == "truncation"
    assert "A keeps the first 40 tokens, B keeps the last 40 tokens" in factor.words


def test_halves_of_a_text_that_share_no_token_are_cut_where_others_are() -> None:
    texts = [" ".join(f"w{k}.{n}" for n in range(size)) for k, size in ((0, 50), (1, 90), (2, 95))]
    whole = [ids_of(text) for text in texts]
    first = side(texts, ids=[row[:40] for row in whole])
    last = side(texts, ids=[row[-40:] for row in whole])
    factor = only(seen(first, last))
    assert (factor.label, factor.place) == ("truncation", "all 3 prompts")
    other = side(texts, ids=[row[-40:] for row in whole], vocabulary="w")
    labels = {each.label for each in seen(first, other).findings if each.nature == "factor"}
    assert labels == {"truncation", "tokenizer"}


def test_the_same_text_with_other_ids_is_a_tokenizer() -> None:
    rows = [(BOS, *ids_of(text)) for text in QUESTIONS]
    split = [(*row[:2], 7, 8, *row[3:]) for row in rows]
    a = side(QUESTIONS, added=("<user>",))
    factor = only(seen(a, side(QUESTIONS, ids=split, vocabulary="w")))
    assert factor.label == "tokenizer"
    assert "B's tokenizer lacks 1 added token of A's ('<user>')" in factor.words


def test_another_tokenizer_with_the_same_ids_is_harmless() -> None:
    found = seen(side(QUESTIONS), side(QUESTIONS, padding_side="left"))
    assert [each.nature for each in found.findings] == ["harmless"]


ROWS = [(BOS, *ids_of(text)) for text in QUESTIONS]


@pytest.mark.parametrize("mask", [None, "ones"])
def test_padding_that_is_attended_to_is_a_mask(mask: str | None) -> None:
    right = batch(ROWS)
    width = max(map(len, ROWS))
    wrong = batch(ROWS, mask=np.ones((3, width), int))
    if mask is None:
        wrong = Side().add(tokenizer()).forward(
            [(PAD,) * (width - len(row)) + row for row in ROWS]
        )  # fmt: skip
    factor = only(seen(right, wrong))
    assert (factor.label, factor.place) == ("mask", "prompts 1 and 3")
    assert "padding before the text is open to attention in B" in factor.words


def test_a_mask_that_hides_the_text_is_a_mask() -> None:
    width = max(map(len, ROWS))
    mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in ROWS])
    mask[:, -3] = 0
    a = side(QUESTIONS)
    b = batch(ROWS, mask=mask)
    factor = only(seen(a, b))
    assert (factor.label, factor.place) == ("mask", "all 3 prompts")


def test_positions_that_count_padding_are_told_with_their_shift() -> None:
    width = max(map(len, ROWS))
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in ROWS]
    right = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    wrong = np.broadcast_to(np.arange(width), (3, width))
    factor = only(seen(batch(ROWS, positions=right), batch(ROWS, positions=wrong)))
    assert (factor.label, factor.place) == ("positions", "prompts 1 and 3")
    assert "start at 1 in B" in factor.words or "start at 2 in B" in factor.words


def test_positions_follow_from_a_mask_that_differs() -> None:
    width = max(map(len, ROWS))
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in ROWS]
    right = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    wrong = np.broadcast_to(np.arange(width), (3, width))
    found = seen(
        batch(ROWS, positions=right),
        batch(ROWS, positions=wrong, mask=np.ones((3, width), int)),
    )
    assert only(found).label == "mask"
    assert [each.nature for each in found.findings if each.label == "positions"] == ["effect"]


def trained(labels: Any, **fields: Any) -> Side:
    made = Side().add(tokenizer())
    return made.forward(
        [ROWS[1]], phase="train", grad=True, labels=[labels], **fields
    ).add(TrainStep(step=1, passes=(0,)))  # fmt: skip


IDS = list(ROWS[1])
ANSWER = [-100] * 4 + IDS[4:]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (IDS, "tokens 5 to 7 are supervised in A, all tokens are supervised in B"),
        ([-100] * len(IDS), "nothing is supervised (all -100) in B"),
        ([-100] * 3 + IDS[4:] + [-100], "labels stand one place too early in B"),
    ],
)
def test_other_labels_are_told_by_how_they_differ(labels: list[int], words: str) -> None:
    factor = only(seen(trained(ANSWER), trained(labels)))
    assert (factor.label, factor.place) == ("labels", "training row 1")
    assert words in factor.words


def test_labels_say_which_rows_differ_and_how_many_tokens_count_in_them() -> None:
    rows = [ROWS[1], tuple(reversed(ROWS[1]))]
    answers = [[-100] * 4 + list(row[4:]) for row in rows]
    every = [list(row) for row in rows]

    def of(*labels: list[int]) -> Side:
        made = Side().add(tokenizer())
        return made.forward(rows, phase="train", grad=True, labels=list(labels)).add(
            TrainStep(step=1, passes=(0,))
        )

    right, all_ = [len(row) - 4 for row in rows], [len(row) for row in rows]
    one = only(seen(of(*answers), of(answers[0], every[1])))
    assert one.place == "training row 2"
    assert one.words.endswith(f"; of this row A supervises {right[1]} tokens, B {all_[1]}")
    both = only(seen(of(*answers), of(*every)))
    assert ": in training row 1, tokens 5 to" in both.words
    assert both.words.endswith(f"; of these rows A supervises {sum(right)} tokens, B {sum(all_)}")
    assert (both.value, both.other, both.unit) == (sum(all_), sum(right), "supervised tokens")


def test_counts_of_supervised_tokens_say_at_which_steps_they_differ() -> None:
    def of(*counts: int) -> Side:
        made = Side().add(tokenizer()).forward([ROWS[1]], phase="train", grad=True)
        for step, count in enumerate(counts, start=1):
            made.add(TrainStep(step=step, batch=f"b{step}", labels=f"l{count}", supervised=count))
        return made

    steps = only(seen(of(5, 5, 5), of(5, 8, 8)))
    assert (steps.label, steps.place) == ("labels", "step 2")
    assert "of those of step 2, A supervises 5 tokens, B 8" in steps.words
    assert steps.words.endswith("2 of 3 steps")


def test_equal_labels_are_ruled_out() -> None:
    assert "labels equal: 1 of 1 training row" in seen(trained(ANSWER), trained(ANSWER)).equal


def test_rows_that_came_up_on_one_side_only_are_no_other_data() -> None:
    a, b = side(QUESTIONS, forward=False), side(QUESTIONS, forward=False)
    a.forward([ROWS[0]], phase="train", grad=True)
    b.forward([ROWS[2]], phase="train", grad=True)
    assert [each for each in seen(a, b).findings if each.nature == "factor"] == []


def test_rows_of_other_records_of_the_same_file_came_in_another_order() -> None:
    def row(text: str, number: int) -> Side:
        ids = (BOS, *ids_of(text))
        slots = (Slot(start=0, stop=len(text), record=f"rows.jsonl:{number}", field="prompt"),)
        made = Side().add(tokenizer()).add(Encoded(text=text, ids=ids, slots=slots))
        return made.forward([ids], phase="train", grad=True)

    a, b = row("who wrote the book ?", 1), row("who wrote the play ?", 2)
    assert [each for each in seen(a, b).findings if each.nature == "factor"] == []


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_that_two_seeds_drew_from_the_same_data_are_no_other_data(seed: int) -> None:
    prints = {"fingerprints": {"tokens.train": "digest"}}
    sides = []
    for number, text in ((0, "who wrote the book ?"), (seed, "who wrote the play ?")):
        made = Side().settings(seed=number).add(tokenizer())
        made.forward([(BOS, *ids_of(text))], phase="train", grad=True)
        sides.append(replace(made.evidence, about=prints))
    factors = [each.label for each in look(Pair(*sides)).findings if each.nature == "factor"]
    assert factors == ([] if seed else ["data"])


@pytest.mark.parametrize("moved", [False, True])
def test_where_equal_rows_came_at_other_steps_the_unlike_ones_came_on_one_side_only(
    moved: bool,
) -> None:
    """With one seed and one set of tokens: unlike rows of the same steps are other data."""
    prints = {"fingerprints": {"tokens.train": "digest"}}
    shared = ["where is the town ?", "when was it made ?", "what is its name ?"]
    a = ["who wrote the book ?", *shared]
    b = ["who wrote the play ?", *(reversed(shared[1:] + shared[:1]) if moved else shared)]
    sides = []
    for texts in (a, b):
        made = Side().settings(seed=0).add(tokenizer())
        for text in texts:
            made.forward([(BOS, *ids_of(text))], phase="train", grad=True)
        sides.append(replace(made.evidence, about=prints))
    factors = [each.label for each in look(Pair(*sides)).findings if each.nature == "factor"]
    assert factors == ([] if moved else ["data"])


def test_where_nothing_was_read_the_texts_that_were_encoded_are_compared() -> None:
    a, b = (side(QUESTIONS, forward=False) for _ in range(2))
    assert seen(a, b).equal == ("token ids equal: 3 of 3 encoded texts",)


def test_where_nothing_was_recorded_nothing_is_said_to_be_equal() -> None:
    found = seen(Side(), Side())
    assert found.equal == ()
    assert found.unseen == ("token ids: no text was recorded on both sides",)
