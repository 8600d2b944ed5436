"""Where a base lies, and its tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from weft.core.errors import InputError
from weft.data.tokenizer import BUNDLED, load_tokenizer, resolve_base


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_a_bundled_base_is_found_in_the_package(name: str) -> None:
    assert Path(resolve_base(name)).parts[-3:] == ("weft", "assets", BUNDLED[name])


def test_an_unknown_bundled_base_gets_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        resolve_base("weft/tniy")
    assert caught.value.hint == "did you mean `weft/tiny`?"


def test_a_directory_must_hold_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        resolve_base(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert resolve_base(str(tmp_path)) == str(tmp_path)


def test_a_base_with_an_adapter_in_its_directory_is_refused(tmp_path):
    """transformers would load the adapter over it, and the base would be another model."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="transformers would add that adapter to the base"):
        resolve_base(str(tmp_path))


@pytest.mark.parametrize("ref", ["./gone", "../gone", "~/gone", "/gone/base"])
def test_what_looks_like_a_path_is_not_sought_on_the_hub(ref: str) -> None:
    with pytest.raises(InputError, match="no such directory"):
        resolve_base(ref)


def test_other_names_are_hub_ids() -> None:
    assert resolve_base("gpt2") == "gpt2"


def test_a_tokenizer_is_loaded_as_it_was_saved(
    tmp_path: Path, gpt2: PreTrainedTokenizerFast
) -> None:
    gpt2.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    loaded = load_tokenizer(str(tmp_path))
    assert loaded("The movie")["input_ids"] == gpt2("The movie")["input_ids"]
    assert loaded.pad_token is None


@pytest.mark.parametrize(
    ("model_type", "problem"),
    [
        ("gpt2", "has no tokenizer files"),  # transformers would give one that knows no word
        ("llama", "cannot load the tokenizer"),
    ],
)
def test_a_base_without_tokenizer_is_an_input_error(
    tmp_path: Path, model_type: str, problem: str
) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    with pytest.raises(InputError, match=problem):
        load_tokenizer(str(tmp_path))
