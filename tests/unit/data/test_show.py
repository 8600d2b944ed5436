"""Examples as a person sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.show import show, token_text

Write = Callable[..., Path]
Tokenizer = PreTrainedTokenizerFast


def shown(path: Path, tokenizer: Tokenizer, k: int = 1, **config: Any) -> list[list[str]]:
    """The paragraphs of the text, in lines."""
    config = {"valid_fraction": 0} | config
    split = load_splits(DataConfig(path=path, **config), tokenizer, ("train",))["train"]
    return [part.splitlines() for part in show(split, tokenizer, k).split("\n\n")]


def test_the_response_and_its_eos_are_marked(
    write_rows: Write, tokenizer_of: Callable[..., Tokenizer]
) -> None:
    path = write_rows({"prompt": "It was", "completion": " great"})
    tokenizer = tokenizer_of("bos")
    _, (header, *lines) = shown(path, tokenizer)
    assert header == "train:1: 5 tokens, 2 supervised"
    it, was, great = tokenizer("It was great", add_special_tokens=False)["input_ids"]
    assert lines == [
        "    0         0  '<s>'",
        f"    1   {it:7}  'It'",
        f"    2   {was:7}  ' was'",
        "        ---- response ----",
        f"    3 * {great:7}  ' great'",
        "    4 *       1  '</s>'  (end of sequence)",
    ]


def test_as_many_examples_as_asked_and_there_are(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows(*[{"prompt": "It", "completion": " was"}] * 3)
    assert len(shown(path, gpt2, k=2)) == 1 + 2
    assert len(shown(path, gpt2, k=9)) == 1 + 3


def test_a_cut_example_says_so(write_rows: Write, gpt2: Tokenizer) -> None:
    path = write_rows({"text": "It was great. It was terrible."})
    _, (header, *_) = shown(path, gpt2, max_length=4)
    assert header == "train:1: 4 tokens, 3 supervised, cut to 4"


def test_the_first_token_is_never_marked(write_rows: Write, gpt2: Tokenizer) -> None:
    _, (_, first, second, *_) = shown(write_rows({"text": "It was great."}), gpt2)
    assert "*" not in first
    assert "*" in second


def test_a_label_that_is_another_token_is_shown(write_rows: Write, gpt2: Tokenizer) -> None:
    it, was = gpt2("It was")["input_ids"]
    _, (*_, last) = shown(write_rows({"input_ids": [it, it], "labels": [-100, was]}), gpt2)
    assert last.endswith(f"'It'  (label {was} ' was')")


def test_part_of_a_character_is_shown_as_the_tokenizer_writes_it(gpt2: Tokenizer) -> None:
    first, *_ = gpt2("\N{SNOWMAN}")["input_ids"]
    piece = gpt2.convert_ids_to_tokens(first)
    assert token_text(gpt2, first) == f"{piece} (part of a character)"


def test_spaces_and_line_ends_can_be_seen(gpt2: Tokenizer) -> None:
    (space,) = gpt2(" ")["input_ids"]
    (newline,) = gpt2("\n")["input_ids"]
    assert (token_text(gpt2, space), token_text(gpt2, newline)) == ("' '", "'\\n'")
