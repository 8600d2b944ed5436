from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from weft.data.tokenizer import tokenizer_seen
from weft.runs.evidence import Encoded, Seeded, TokenizerSeen


@pytest.fixture
def tokenizer(small_base):
    return AutoTokenizer.from_pretrained(small_base)


CALLS = {
    "a call": lambda tokenizer, text: tokenizer(text),
    "encode": lambda tokenizer, text: tokenizer.encode(text),
    "tensors": lambda tokenizer, text: tokenizer(text, return_tensors="pt"),
    "tensors of encode": lambda tokenizer, text: tokenizer.encode(text, return_tensors="pt"),
    "by name": lambda tokenizer, text: tokenizer(text=text, padding="max_length", max_length=30),
    "a batch": lambda tokenizer, text: tokenizer([text, "a longer text than that"], padding=True),
    "left": lambda tokenizer, text: tokenizer([text, "the cat sat"], padding=True, truncation=True),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_text_and_its_ids_without_padding_are_seen_once(tokenizer, record, call):
    expected = tuple(tokenizer.encode("the mat"))
    tokenizer.padding_side = "left" if call == "left" else "right"
    left = record(lambda: CALLS[call](tokenizer, "the mat"))
    first, *others = left.of(Encoded)
    assert (first.text, first.ids, first.templated) == ("the mat", expected, False)
    assert first.full_length is None
    assert len(others) == (1 if call in {"a batch", "left"} else 0)
    assert (first.where is not None and first.where.startswith("tests/")) or first.where


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_was_cut_is_said(tokenizer, record, side):
    text = "the cat sat on a mat and the dog ran"
    whole = tokenizer.encode(text)
    tokenizer.truncation_side = side
    left = record(lambda: tokenizer(text, truncation=True, max_length=4))
    (seen,) = left.of(Encoded)
    assert seen.ids == tuple(whole[-4:] if side == "left" else whole[:4])
    assert (seen.full_length, seen.truncation_side) == (len(whole), side)


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("tokenize", [True, False])
def test_a_chat_template_is_known_in_the_text_that_it_made(tokenizer, record, tokenize):
    tokenizer.chat_template = TEMPLATE
    messages = [{"role": "user", "content": "the cat"}]

    def run():
        made = tokenizer.apply_chat_template(messages, tokenize=tokenize)
        if not tokenize:
            tokenizer(made, add_special_tokens=False)
        tokenizer("the dog")

    seen, plain = record(run).of(Encoded)
    assert (seen.text, seen.templated, seen.special) == ("<user>the cat", True, False)
    assert (plain.text, plain.templated) == ("the dog", False)


def test_a_tokenizer_is_written_down_again_when_it_has_changed(tokenizer, record):
    def run():
        tokenizer("the cat")
        tokenizer("the cat")
        tokenizer.padding_side = "left"
        tokenizer.add_special_tokens({"additional_special_tokens": ["<x>"]})
        tokenizer("the cat")

    first, second = record(run).of(TokenizerSeen)
    assert (first.padding_side, second.padding_side) == ("right", "left")
    assert second.size == first.size + 1 and "<x>" in second.added
    assert first.vocabulary != second.vocabulary
    assert second.model_copy(update={"where": None}) == tokenizer_seen(tokenizer)


def test_seeds_are_seen_once_each_with_their_line(record):
    import random

    import numpy
    import torch
    from transformers import set_seed

    def run():
        torch.manual_seed(3)
        numpy.random.seed(4)  # noqa: NPY002
        random.seed(5)
        random.seed()
        numpy.random.default_rng(6)
        set_seed(7)

    with torch.random.fork_rng():
        seeds = record(run).of(Seeded)
    named = [(seed.library, seed.seed) for seed in seeds]
    assert named[:4] == [("torch", 3), ("numpy", 4), ("python", 5), ("numpy", 6)]
    assert sorted(named[4:]) == [("numpy", 7), ("python", 7), ("torch", 7)]
    assert seeds[0].where is not None
