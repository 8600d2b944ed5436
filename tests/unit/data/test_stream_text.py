"""What is given out piece by piece is, in the end, exactly the text."""

from __future__ import annotations

import numpy as np
import pytest

from weft.data.stream_text import Detokeniser, TextStream, before_stop
from weft.data.tokenizer import load_tokenizer
from weft.data.tokens import decode_completion, encode_texts


@pytest.fixture(scope="module")
def tiny():
    """Byte-level: a token may be a part of a character."""
    return load_tokenizer("weft/tiny")


@pytest.fixture(scope="module")
def bytes_fall_back():
    """As of Llama 2: unknown characters are byte tokens, which are text only as a whole run."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁the", "▁", "a", "b", "▁end", "."]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def streamed(tokenizer, prompt, ids, stops=()):
    """The pieces as they come, and the stream."""
    stream = TextStream(tokenizer, np.array(prompt), stops)
    return [*map(stream.add, ids), stream.rest()], stream


@pytest.mark.parametrize("longest", [14, 200])
@pytest.mark.parametrize("name", ["tiny", "bytes_fall_back"])
def test_pieces_add_up_for_any_ids(name, longest, request):
    tokenizer = request.getfixturevalue(name)
    generator = np.random.default_rng(0)
    for _ in range(5000 // longest):
        prompt = generator.integers(0, len(tokenizer), generator.integers(1, 5))
        ids = generator.integers(0, len(tokenizer), generator.integers(1, longest)).tolist()
        stops = ["th", "a the", "e.", "\n"][: generator.integers(0, 5)]
        pieces, stream = streamed(tokenizer, prompt, ids, stops)
        whole = decode_completion(tokenizer, prompt, ids)
        assert "".join(pieces) == stream.text == before_stop(whole, stops)


@pytest.mark.parametrize("name", ["tiny", "bytes_fall_back"])
def test_a_growing_text_is_at_every_token_that_of_all_its_tokens(name, request):
    tokenizer = request.getfixturevalue(name)
    generator = np.random.default_rng(1)
    for often in (0.0, 0.5, 0.98):  # as often a token of real text, or a byte, as any other
        prompt = generator.integers(0, len(tokenizer), 6)
        said, ids = Detokeniser(tokenizer, prompt), []
        for _ in range(300):
            low, high = (3, 200) if generator.random() < often else (0, len(tokenizer))
            ids.append(int(generator.integers(low, high)))
            said.add(ids[-1])
            assert said.text == decode_completion(tokenizer, prompt, ids)


def test_a_long_run_of_bytes_stays_one_text(bytes_fall_back):
    """A byte that is wrong makes a replacement character of every byte of its run."""
    run = [bytes_fall_back.convert_tokens_to_ids(f"<0x{b:02X}>") for b in ("é" * 30).encode()]
    wrong = bytes_fall_back.convert_tokens_to_ids("<0xFF>")
    said = Detokeniser(bytes_fall_back, np.array([5]))
    for token in run:
        said.add(token)
    assert said.text == "é" * 30
    said.add(wrong)
    assert said.text == "\ufffd" * 61


def test_a_long_text_costs_as_much_a_token_as_a_short_one(tiny, monkeypatch):
    decoded = []
    whole = type(tiny).decode

    def counted(self, ids, **options):
        decoded.append(len(ids))
        return whole(self, ids, **options)

    monkeypatch.setattr(type(tiny), "decode", counted)
    (ids,) = encode_texts(tiny, ["Once upon a time there was a cat. " * 40])
    stream = TextStream(tiny, np.array([5]), ["never"])
    assert "".join([*map(stream.add, ids), stream.rest()]) == stream.text
    assert len(ids) > 300 and max(decoded) < 40


def test_text_is_not_held_back_without_a_reason(tiny):
    (ids,) = encode_texts(tiny, ["Once upon a time there was"])
    pieces, _ = streamed(tiny, [5], ids)
    assert pieces == [decode_completion(tiny, np.array([5]), [i]) for i in ids] + [""]


@pytest.mark.parametrize("name", ["tiny", "bytes_fall_back"])
def test_a_character_of_several_tokens_comes_whole(name, request):
    tokenizer = request.getfixturevalue(name)
    byte = {
        "tiny": lambda b: tokenizer.convert_tokens_to_ids(_byte_level(b)),
        "bytes_fall_back": lambda b: tokenizer.convert_tokens_to_ids(f"<0x{b:02X}>"),
    }[name]
    ids = [byte(b) for b in "😀".encode()]
    pieces, _ = streamed(tokenizer, [5], ids)
    assert pieces[:3] == ["", "", ""]
    assert "".join(pieces) == "😀"


def test_what_may_begin_a_stop_text_is_held_back_until_it_does_not(tiny):
    (ids,) = encode_texts(tiny, ["a\n\nb\nc"])
    assert len(ids) > 3
    pieces, stream = streamed(tiny, [5], ids, ["\n\nc"])
    assert "".join(pieces) == "a\n\nb\nc" == stream.text
    pieces, stream = streamed(tiny, [5], ids, ["\n\nb"])
    assert "".join(pieces) == "a" == stream.text


def test_the_first_of_several_stop_texts_ends():
    assert before_stop("one two three", ["three", "two"]) == "one "
    assert before_stop("one", []) == "one"


def _byte_level(value: int) -> str:
    """A byte in the alphabet of byte-level tokenizers."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()[value]
