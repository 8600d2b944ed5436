"""Train the byte-level BPE tokenizer of the bundled base: `python -m tools.tokenizer`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.corpus.build import GENRES, documents

VOCAB = 4096
EOS, PAD = "<|endoftext|>", "<|pad|>"
SINGLE = (" great", " terrible", " Yes", " No", " positive", " negative", " good", " bad")
"""Label words that evaluations compare: each has to be one token."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].capitalize() + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
SAMPLE_BYTES = 1_200_000
"""Text per genre for training; equal shares, so that no genre's words are missing."""


def texts() -> Iterator[str]:
    """The first documents of each genre of the first stage."""
    for genre in GENRES:
        if genre in ("echoes", "letters"):
            continue
        yield from documents(genre, SAMPLE_BYTES)


def train() -> Tokenizer:
    """Byte-level BPE with all 256 bytes in the alphabet and single digits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[EOS, PAD],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def check(tokenizer: Tokenizer) -> None:
    """Stop unless the promises hold: label words, digits, any text."""
    for word in SINGLE:
        if len(tokenizer.encode(word).ids) != 1:
            raise SystemExit(f"{word!r} is not one token")
    for text in ("12345", "a 1/2 \u00e9\u4e2d\U0001f642\n\t\x00 x", "  two  spaces "):
        if tokenizer.decode(tokenizer.encode(text).ids) != text:
            raise SystemExit(f"{text!r} does not survive a round trip")
    if len(tokenizer.encode("12345").ids) != 5:
        raise SystemExit("digits are not single tokens")
    if tokenizer.get_vocab_size() != VOCAB:
        raise SystemExit(f"vocabulary has {tokenizer.get_vocab_size()} entries, not {VOCAB}")


def main() -> None:
    """Train, check, and write tokenizer.json and tokenizer_config.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("weft/assets/tiny"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train()
    check(tokenizer)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
