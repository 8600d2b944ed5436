"""A tokenizer without transformers gives what transformers' own gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from weft.core.errors import InputError
from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.plain import PlainTokenizer, plain_tokenizer
from weft.data.show import show, token_text
from weft.data.tasks import TASKS
from weft.data.tokenizer import load_tokenizer, row_tokenizer
from weft.data.tokens import encode_completions, encode_texts, head_ids

TEXTS = [
    "",
    "The movie was terrible.",
    " yes",
    "yes\n\nAnswer: ",
    "two  spaces\tand é 漢字 \U0001f600 \x00",
    "a </s> that is <s>not<pad> the end",
    "</s>",
    "word " * 500,
]


@pytest.fixture
def saved(tmp_path, tokenizer_of, metaspace):
    """The folder of a base with a tokenizer of a kind."""

    def make(kind: str = "bos", **special) -> Path:
        tokenizer = metaspace if kind == "metaspace" else tokenizer_of(kind, **special)
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        return tmp_path

    return make


@pytest.mark.parametrize("kind", ["gpt2", "bos", "eos", "both", "metaspace"])
def test_ids_and_texts_are_transformers_own(kind, saved):
    ref = str(saved(kind))
    plain, whole = row_tokenizer(ref), load_tokenizer(ref)
    assert isinstance(plain, PlainTokenizer)
    assert (len(plain), plain.eos_token_id) == (len(whole), whole.eos_token_id)
    assert plain.unk_token_id == whole.unk_token_id
    assert head_ids(plain) == head_ids(whole)
    called = whole(TEXTS, add_special_tokens=False)["input_ids"]
    assert encode_texts(plain, TEXTS) == encode_texts(whole, TEXTS) == called
    assert encode_completions(plain, TEXTS) == encode_completions(whole, TEXTS)
    assert [plain.decode(ids) for ids in called] == [whole.decode(ids) for ids in called]
    pieces = [token_text(plain, id) for id in range(len(plain) + 1)]
    assert pieces == [token_text(whole, id) for id in range(len(plain) + 1)]


@pytest.mark.parametrize("task", TASKS)
def test_bundled_rows_are_the_same_with_either(task):
    plain, whole = row_tokenizer("weft/tiny"), load_tokenizer("weft/tiny")
    assert isinstance(plain, PlainTokenizer)
    config = DataConfig(task=task, max_length=160)
    ours, theirs = (load_splits(config, each, ("valid",))["valid"] for each in (plain, whole))
    assert (ours.fingerprint, ours.counts) == (theirs.fingerprint, theirs.counts)
    assert (ours.notices, ours.candidates) == (theirs.notices, theirs.candidates)
    assert show(ours, plain, 2) == show(theirs, whole, 2)


def test_conversations_are_put_into_words_by_transformers(saved, chat, write_rows):
    ref = str(saved(chat_template=chat.chat_template))
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "yes"}]
    path = write_rows(*({"messages": turns} for _ in range(4)))
    config = DataConfig(path=path, valid_fraction=0)
    found = [
        load_splits(config, tokenizer, ("train",))["train"]
        for tokenizer in (row_tokenizer(ref), load_tokenizer(ref))
    ]
    assert found[0].fingerprint == found[1].fingerprint
    assert found[0].prompts[0] == "<|user|>Hello</s><|assistant|>"


def test_ids_that_come_with_the_rows_are_checked_alike(saved, write_rows):
    ref = str(saved())
    rows = [{"input_ids": [5, 6, 9000], "labels": [-100, 6, 7]}]
    config = DataConfig(path=write_rows(*rows), valid_fraction=0)
    said = []
    for tokenizer in (row_tokenizer(ref), load_tokenizer(ref)):
        with pytest.raises(InputError) as caught:
            load_splits(config, tokenizer, ("train",))
        said.append(str(caught.value))
    assert said[0] == said[1]


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"model_type": "qwen2"}),  # transformers takes Qwen's class there
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        ("tokenizer_config.json", {"clean_up_tokenization_spaces": True}),
        ("tokenizer_config.json", {"extra_special_tokens": ["<more>"]}),
        ("tokenizer_config.json", {"eos_token": "<new>"}),
        ("tokenizer_config.json", {"eos_token": "movie"}),
        ("tokenizer_config.json", {"eos_token": {"content": "</s>"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": {"content": "<s>"}}}),
        ("tokenizer_config.json", {"an_entry_of_tomorrow": 1}),
        ("tokenizer.json", {"added_tokens": []}),
        ("tokenizer.json", {"model": {}}),
        ("special_tokens_map.json", {}),
    ],
    ids=str,
)
def test_what_transformers_may_read_otherwise_is_left_to_it(name, changes, saved):
    folder = saved()
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    edit(folder / name, **changes)
    assert plain_tokenizer(folder, load_nothing) is None


def test_tokens_that_are_said_twice_and_alike_are_no_obstacle(saved):
    folder = saved()
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    again = {str(token.pop("id")): token for token in added}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=again)
    plain, whole = plain_tokenizer(folder, load_nothing), load_tokenizer(str(folder))
    assert plain is not None
    assert encode_texts(plain, TEXTS) == encode_texts(whole, TEXTS)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_file_that_is_missing_or_broken_is_left_to_transformers(name, saved):
    folder = saved()
    (folder / name).write_text('{"x":')
    assert plain_tokenizer(folder, load_nothing) is None
    (folder / name).unlink()
    assert plain_tokenizer(folder, load_nothing) is None


def load_nothing():
    raise AssertionError("transformers was asked")
