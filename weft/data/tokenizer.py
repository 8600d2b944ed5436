"""Where a base lives on disk, and its tokenizer."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from weft.core.errors import InputError, did_you_mean
from weft.data.plain import PlainTokenizer, plain_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from weft.runs.evidence import TokenizerSeen

BUNDLED = {"weft/tiny": "tiny"}
"""Bases that ship with Weft, by name, and their folder under `weft/assets`."""

SPECIAL = ("bos", "eos", "pad", "unk")
"""Tokens of which evidence has the ids."""


def resolve_base(ref: str) -> str:
    """The directory of a base that ships with Weft or lies on disk; any other name is a hub id.

    Raises `InputError` for a bundled name that does not exist and for a path without a model.
    """
    if ref in BUNDLED:
        return str(files("weft") / "assets" / BUNDLED[ref])
    if ref.startswith("weft/"):
        raise InputError(
            f"base: there is no bundled base {ref!r}",
            hint=did_you_mean(ref, list(BUNDLED)) or f"bundled: {', '.join(BUNDLED)}",
        )
    path = Path(ref)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"base: the directory {ref!r} has no config.json",
                hint="a base directory is one that transformers' save_pretrained wrote",
            )
        if (path / "adapter_config.json").is_file():
            raise InputError(
                f"base: the directory {ref!r} also holds an adapter's adapter_config.json, and"
                " transformers would add that adapter to the base",
                hint="move the files of the adapter to a directory of their own",
            )
        return str(path)
    if path.is_absolute() or ref.startswith((".", "~")):
        raise InputError(f"base: no such directory: {ref!r}")
    return ref


def load_tokenizer(ref: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base, exactly as transformers loads it."""
    from transformers import AutoTokenizer

    path = resolve_base(ref)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"base: cannot load the tokenizer of {ref!r}: {str(error).strip().splitlines()[0]}",
            hint="give a directory, or a hub id that this machine can reach or has cached",
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes up an empty one
        raise InputError(
            f"base: {ref!r} has no tokenizer files",
            hint="copy tokenizer.json and tokenizer_config.json of the base into its directory",
        )
    return tokenizer


def row_tokenizer(ref: str) -> PreTrainedTokenizerBase | PlainTokenizer:
    """The same one as far as reading rows needs it, without transformers where that can be."""
    plain = plain_tokenizer(Path(resolve_base(ref)), lambda: load_tokenizer(ref))
    return load_tokenizer(ref) if plain is None else plain


def tokenizer_seen(tokenizer: PreTrainedTokenizerBase) -> TokenizerSeen:
    """A tokenizer as evidence: digests of its vocabulary and template, and its special tokens."""
    from weft.runs.evidence import TokenizerSeen  # here: its many models take a moment to make

    template = getattr(tokenizer, "chat_template", None)
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0]))
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in SPECIAL}
    return TokenizerSeen(
        name=str(getattr(tokenizer, "name_or_path", "")),
        size=len(tokenizer),
        vocabulary=_sha256(json.dumps(pairs)),
        template=None if template is None else _sha256(json.dumps(template)),
        added=tuple(sorted(map(str, tokenizer.get_added_vocab()))),
        special={name: id for name, id in special.items() if isinstance(id, int)},
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
