"""Parameters of a generation, from what people give: checked, and named as they were given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from weft.core.errors import InputError, did_you_mean
from weft.model.decoding import Decoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLING = ("top_p", "top_k", "min_p", "seed")
"""Parameters that only a draw uses."""

LIMITS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
"""Bounds of a parameter, in words."""


def make_decoding(parameters: Mapping[str, Any], names: Mapping[str, str]) -> Decoding:
    """Checked parameters; `InputError` with name, value and range of everything that is wrong."""
    try:
        return Decoding(**parameters)
    except ValidationError as error:
        problems, known = [], list(Decoding.model_fields)
        for issue in error.errors():
            name = str(issue["loc"][0]) if issue["loc"] else "stop"
            if issue["type"] == "extra_forbidden":
                raise InputError(
                    f"there is no parameter `{name}`",
                    hint=did_you_mean(name, known) or f"there are {', '.join(known)}",
                ) from None
            reason = issue["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            field = Decoding.model_fields.get(name)
            limits = [
                f"{words} {getattr(bound, attribute):g}"
                for bound in (field.metadata if field else ())
                for attribute, words in LIMITS.items()
                if hasattr(bound, attribute)
            ]
            value = f" is {issue['input']!r}: must be" if issue["loc"] else ":"
            if limits and issue["type"] != "value_error":
                reason = " and ".join(limits)
            problems.append(f"{names.get(name, f'`{name}`')}{value} {reason}")
        raise InputError("; ".join(problems)) from None


def idle(decoding: Decoding, names: Mapping[str, str]) -> tuple[str, ...]:
    """Parameters that were given and change nothing."""
    given, said = decoding.model_fields_set, []
    if decoding.greedy and (idle := [name for name in SAMPLING if name in given]):
        shown = ", ".join(names.get(name, f"`{name}`") for name in idle)
        said.append(f"temperature 0 takes the most likely token: {shown} changes nothing")
    if decoding.repetition_penalty == 1 and "repetition_window" in given:
        window, penalty = (
            names.get(name, f"`{name}`") for name in ("repetition_window", "repetition_penalty")
        )
        said.append(f"without {penalty} there is no penalty: {window} changes nothing")
    return tuple(said)


def token_id(tokenizer: PreTrainedTokenizerBase, token: str | int) -> int:
    """The id of a token given by id or by its exact name, such as `<|im_end|>`."""
    vocabulary = tokenizer.get_vocab()
    if str(token).isascii() and str(token).isdecimal():
        if int(token) < len(tokenizer):
            return int(token)
        raise InputError(f"there is no token {token}: the ids are 0 to {len(tokenizer) - 1}")
    if token in vocabulary:
        return int(vocabulary[str(token)])
    special = [str(each) for each in tokenizer.all_special_tokens]
    raise InputError(
        f"the tokenizer has no token {str(token)!r}",
        hint=did_you_mean(str(token), special)
        or f"its special tokens are {', '.join(special)}; a text ends completions as a stop text",
    )
