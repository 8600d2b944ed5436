"""Tiny tokenizers of the kinds that models bring, and files of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "It was great. The movie was terrible. A warm and funny film.",
    "Below is an instruction that describes a task. Write a response.",
    "### Instruction:\nName a colour.\n\n### Response: blue",
    "table: 1-10\ncolumns: Name, Age\nQ: How old is Ann?\nA: SELECT Age FROM 1-10",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    return tokenizer


_AROUND = {  # what a tokenizer puts around a text
    "gpt2": None,
    "bos": "<s> $A",
    "eos": "$A </s>",
    "both": "<s> $A </s>",
}


@pytest.fixture(scope="session")
def tokenizer_of() -> Callable[..., PreTrainedTokenizerFast]:
    """A tokenizer by kind: "gpt2" adds nothing, the others add BOS, EOS or both."""

    def make(kind: str = "gpt2", **special: Any) -> PreTrainedTokenizerFast:
        backend = _byte_level()
        if (around := _AROUND[kind]) is not None:
            backend.post_processor = processors.TemplateProcessing(
                single=around, special_tokens=[("<s>", 0), ("</s>", 1)]
            )
        special = {"bos_token": "<s>", "eos_token": "</s>"} | special
        return PreTrainedTokenizerFast(tokenizer_object=backend, **special)

    return make


@pytest.fixture(scope="session")
def gpt2(tokenizer_of: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """Like GPT-2's: byte level, nothing put around a text, no pad token."""
    return tokenizer_of("gpt2")


@pytest.fixture(scope="session")
def chat(tokenizer_of: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """One that adds BOS and has a chat template whose turns end with EOS."""
    return tokenizer_of("bos", chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def metaspace() -> PreTrainedTokenizerFast:
    """Like Llama's: a space is put before every text, and words carry theirs."""
    words = ["</s>", "<unk>", "▁yes", "▁Answer", "\n\n"]
    vocab = [(word, -1.0) for word in words] + [(letter, -3.0) for letter in "▁\n.:yesx"]
    backend = Tokenizer(models.Unigram(vocab, unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSON lines; a row that is text already is written as it is."""

    def write(*rows: dict[str, Any] | str, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write
