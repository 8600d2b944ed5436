"""A base's tokenizer by the package `tokenizers` alone, where transformers adds nothing to it.

tokenizer.json is the whole tokenizer, and is read in a moment; transformers, and PyTorch with it,
take seconds to import. What rows are read with is here, with the names and the results that it has
there; chat templates, and whatever else is asked for, come from transformers' own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    RowTokenizer: TypeAlias = "PreTrainedTokenizerBase | PlainTokenizer"

BASES = ("llama",)
"""Kinds of base for which transformers takes the class that tokenizer_config.json names."""

CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Those that read tokenizer.json and change nothing."""

NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
SILENT = {
    *("tokenizer_class", "backend", "is_local", "local_files_only", "name_or_path"),
    *("model_max_length", "model_input_names", "padding_side", "chat_template"),
    *("add_bos_token", "add_eos_token"),  # not read where there is a tokenizer.json
    *("added_tokens_decoder", "clean_up_tokenization_spaces"),  # looked at by themselves
}
"""Other entries of tokenizer_config.json that change neither ids nor texts."""

OTHERS = ("added_tokens.json", "special_tokens_map.json", "tekken.json", "tokenizer.model")
"""Files from which transformers would take more."""

SPECIAL = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
"""What transformers makes of a named token, whatever it was before."""


@dataclass(frozen=True, eq=False)
class PlainTokenizer:
    """What rows are read with of a tokenizer of transformers."""

    backend_tokenizer: Tokenizer
    named: Mapping[str, str]
    whole: Callable[[], PreTrainedTokenizerBase]
    """Loads transformers' own, for what is not here."""
    split_special_tokens: bool = False

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text."""
        return self._id("eos_token")

    @property
    def unk_token_id(self) -> int | None:
        """The token that stands for what has none."""
        return self._id("unk_token")

    def _id(self, name: str) -> int | None:
        token = self.named.get(name)
        return None if token is None else self.backend_tokenizer.token_to_id(token)

    def __call__(self, text: str, *, return_special_tokens_mask: bool) -> dict[str, list[int]]:
        """Ids of a text with what the tokenizer puts around it."""
        made = self.backend_tokenizer.encode(text)
        return {"input_ids": made.ids, "special_tokens_mask": made.special_tokens_mask}

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self.backend_tokenizer.decode(list(ids), skip_special_tokens=False)

    def convert_ids_to_tokens(self, id: int) -> str | None:
        """A token in the tokenizer's own notation."""
        return self.backend_tokenizer.id_to_token(id)

    @cached_property
    def _whole(self) -> PreTrainedTokenizerBase:
        return self.whole()

    @property
    def chat_template(self) -> Any:
        """How conversations are put into words."""
        return self._whole.chat_template

    def apply_chat_template(self, *args: Any, **options: Any) -> Any:
        """A conversation in words."""
        return self._whole.apply_chat_template(*args, **options)


def plain_tokenizer(
    folder: Path, whole: Callable[[], PreTrainedTokenizerBase]
) -> PlainTokenizer | None:
    """The tokenizer of a folder; None where transformers might make something else of its files."""
    names = ("config.json", "tokenizer_config.json", "tokenizer.json")
    try:
        base, config, file = (json.loads((folder / name).read_bytes()) for name in names)
        named = {name: config[name] for name in NAMED if config.get(name) is not None}
        fits = (
            base["model_type"] in BASES
            and config["tokenizer_class"] in CLASSES
            and config.get("clean_up_tokenization_spaces", False) is False
            and config.keys() <= {*NAMED, *SILENT}
            and _known(file["added_tokens"], config.get("added_tokens_decoder"), named.values())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # transformers will say what is wrong
    if not fits or any((folder / name).exists() for name in OTHERS):
        return None
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # it raises nothing narrower
        return None
    backend.no_truncation()
    backend.no_padding()
    if backend.get_vocab_size() <= len(set(named.values())):  # nothing but those: an empty one
        return None
    return PlainTokenizer(backend, named, whole)


def _known(
    added: Sequence[Mapping[str, Any]],
    again: Mapping[str, Mapping[str, Any]] | None,
    named: Iterable[str],
) -> bool:
    """Whether all that tokenizer_config.json says of tokens stands in tokenizer.json as well."""
    by_id = {str(token["id"]): {**token} for token in added}
    for token in by_id.values():
        del token["id"]
    special = {token["content"] for token in added if SPECIAL.items() <= token.items()}
    return again in (None, by_id) and all(isinstance(t, str) and t in special for t in named)
