"""The bundled base model: files, size, tokenizer promises, architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

TINY = Path(__file__).resolve().parents[3] / "weft" / "assets" / "tiny"
TEXTS = (
    "Once there was a fox.",
    "12345 + 6 = 12351",
    "SELECT a FROM 1-10-2 WHERE b = 'C'",
    "na\u00efve caf\u00e9 \u2014 \u4e2d\u6587 \U0001f98a\u200d\U0001f3fd",
    "\x00\x07\t\r\n  end ",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940 \ud7a3",
    "",
    "".join(chr(code) for code in range(0x20, 0x250)),
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


def config() -> dict:
    return json.loads((TINY / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_a_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("word", [" great", " terrible", " Yes", " No", " positive", " negative"])
def test_label_words_are_one_token(tokenizer: Tokenizer, word: str) -> None:
    assert len(tokenizer.encode(word).ids) == 1
    assert len(tokenizer.encode("It was" + word).ids) == len(tokenizer.encode("It was").ids) + 1


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("90210").tokens == list("90210")


def test_no_special_token_is_added(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("the").ids == tokenizer.encode("the", add_special_tokens=False).ids


def test_eos_and_pad_are_distinct(tokenizer: Tokenizer) -> None:
    named = json.loads((TINY / "tokenizer_config.json").read_text(encoding="utf-8"))
    eos = tokenizer.token_to_id(named["eos_token"])
    pad = tokenizer.token_to_id(named["pad_token"])
    assert eos is not None and pad is not None and eos != pad
    assert (config()["eos_token_id"], config()["pad_token_id"]) == (eos, pad)


def test_architecture() -> None:
    found = config()
    assert found["model_type"] == "llama"
    assert found["num_key_value_heads"] < found["num_attention_heads"]
    assert found["tie_word_embeddings"] is True
    assert found["max_position_embeddings"] == 512
    assert found["rope_theta"] == found["rope_parameters"]["rope_theta"]


def test_generation_config_leaves_sampling_alone() -> None:
    found = json.loads((TINY / "generation_config.json").read_text(encoding="utf-8"))
    assert set(found) == {"eos_token_id", "pad_token_id"}


def test_weights_are_small_and_complete() -> None:
    weights = TINY / "model.safetensors"
    assert weights.stat().st_size <= 12 * 2**20
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    names = set(header) - {"__metadata__"}
    assert len(names) == 2 + 9 * config()["num_hidden_layers"]
    assert header["model.embed_tokens.weight"]["shape"] == [
        config()["vocab_size"],
        config()["hidden_size"],
    ]


def test_log_tells_how_the_model_was_trained() -> None:
    text = (TINY / "training_log.jsonl").read_text(encoding="utf-8")
    log = [json.loads(line) for line in text.splitlines()]
    assert log[-1]["loss"] < log[0]["loss"] / 2
    assert any("held_out_loss" in entry for entry in log)
