"""Tests see no network, and are told nothing about the machine they run on."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from weft.core.batch import IGNORE, Batch, Example
from weft.core.threads import wait_politely

# before any test imports torch, transformers, tokenizers or matplotlib
wait_politely()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"
for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
    os.environ.pop(name, None)

os.fsync = lambda descriptor: None  # slow; a machine that stops needs it, a kill does not

VOCABULARY = 97
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SMALL),
    "mistral": ("MistralConfig", SMALL | {"sliding_window": 5}),
    "qwen2": ("Qwen2Config", SMALL),
    "gemma": ("GemmaConfig", SMALL | {"num_key_value_heads": 1, "head_dim": 8}),
    "mixtral": ("MixtralConfig", SMALL | {"num_local_experts": 4}),
    "gpt2": (
        "GPT2Config",
        {
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "vocab_size": VOCABULARY,
            "n_positions": 64,
            "bos_token_id": None,
            "eos_token_id": 1,
        },
    ),
    "opt": (
        "OPTConfig",
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
    ),
    "opt-350m": (  # norms after their blocks, unlike every other OPT, and narrow embeddings
        "OPTConfig",
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
    ),
    "gptj": (
        "GPTJConfig",
        {
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "rotary_dim": 4,
            "vocab_size": VOCABULARY,
            "n_positions": 64,
            "bos_token_id": None,
            "eos_token_id": 1,
        },
    ),
    "bloom": (
        "BloomConfig",
        {
            "hidden_size": 32,
            "n_layer": 3,
            "n_head": 4,
            "vocab_size": VOCABULARY,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
    ),
}
"""Tiny models of each architecture; bloom and gptj are some that cannot run without padding."""


class NoTokenizer:
    """For tests that speak in token ids."""

    pad_token_id = None
    eos_token_id = 1


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """A random model of an architecture: always the same weights, and large enough to matter."""
    import torch
    import transformers

    def make(architecture: str, **changes: Any) -> Any:
        kind, settings = ARCHITECTURES[architecture]
        config = getattr(transformers, kind)(**settings | changes)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(torch.randn(parameter.shape) * 0.15)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_base(make_model: Callable[..., Any]) -> Callable[..., Any]:
    """The same model, as Weft's base."""
    from weft.model.base import prepare

    def make(architecture: str, **changes: Any) -> Any:
        return prepare(architecture, make_model(architecture, **changes), NoTokenizer())

    return make


def example(number: int, length: int, prompt: int, seed: int = 0) -> Example:
    """Random token ids, of which the first `prompt` are not supervised."""
    ids_T = np.random.default_rng([seed, number]).integers(2, VOCABULARY, length)
    labels_T = ids_T.copy()
    labels_T[:prompt] = IGNORE
    return Example(f"row:{number}", ids_T, labels_T)


@pytest.fixture
def batch() -> Batch:
    """Rows of different and of equal lengths, not in order of length."""
    shapes = [(9, 4), (5, 2), (9, 1), (7, 3), (3, 1)]
    return Batch(tuple(example(i, *shape) for i, shape in enumerate(shapes)))


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Batches of `rows` rows, different for each seed."""

    def make(seed: int, rows: int = 4) -> Batch:
        lengths = np.random.default_rng([7, seed]).integers(4, 20, rows)
        return Batch(tuple(example(i, int(n), int(n) // 3, seed) for i, n in enumerate(lengths)))

    return make


WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "small", "red", "house"]


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any]) -> str:
    """A directory with a tiny random Llama and a byte-level tokenizer: what a base is on disk."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("bases") / "small"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<eos>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS), "instruction response great terrible"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.save_pretrained(directory)
    make_model("llama", vocab_size=320, max_position_embeddings=256).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="session")
def rows_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with train and validation rows in the Alpaca schema."""
    directory = tmp_path_factory.mktemp("rows")
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("valid", 12)):
        lines = []
        for _ in range(count):
            asked = " ".join(generator.choice(WORDS, 4))
            answer = " ".join(generator.choice(WORDS, generator.integers(2, 8)))
            lines.append(json.dumps({"instruction": asked, "input": "", "output": answer}))
        (directory / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return str(directory)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port of this machine that nobody uses."""

    def find() -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return int(free.getsockname()[1])

    return find
