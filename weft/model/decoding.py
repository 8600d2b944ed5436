"""What determines a completion besides weights and prompt, and what a completion is (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from weft.core.keys import Key

OrderName = Literal["hf", "mlx"]

SMALLEST, LARGEST = 1e-30, 1e30
"""What logits can be divided by: beyond it they would overflow, or the divisor would, in fp32."""


@dataclass(frozen=True)
class Order:
    """The order in which logits become a distribution, as one of the public stacks does it."""

    name: OrderName
    what: str
    temperature_first: bool
    filters: tuple[Literal["top_k", "top_p", "min_p"], ...]
    repetition_window: int | None
    """How many of the last tokens the repetition penalty sees; None for all, prompt included."""


ORDERS: dict[str, Order] = {
    order.name: order
    for order in (
        Order(
            "hf",
            "penalty (all tokens), temperature, top-k, top-p, min-p (transformers)",
            True,
            ("top_k", "top_p", "min_p"),
            None,
        ),
        Order(
            "mlx",
            "penalty (last 20 tokens), top-p, min-p, top-k, temperature (mlx-lm)",
            False,
            ("top_p", "min_p", "top_k"),
            20,
        ),
    )
}
"""hf: `generation/utils.py` of transformers 5; mlx: `sample_utils.py` of mlx-lm 0.32."""


class Decoding(BaseModel):
    """The resolved parameters of a generation: with weights and prompt, all that determines it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: Annotated[
        float, Field(ge=0, description="0 takes the most likely token (greedy)")
    ] = 0.0
    top_p: Annotated[
        float, Field(gt=0, le=1, description="smallest set of tokens with this probability")
    ] = 1.0
    top_k: Annotated[int, Field(ge=0, description="this many most likely tokens; 0 for all")] = 0
    min_p: Annotated[
        float, Field(ge=0, le=1, description="tokens of this share of the best one's probability")
    ] = 0.0
    repetition_penalty: Annotated[
        float, Field(gt=0, description="positive logits of seen tokens are divided by it")
    ] = 1.0
    repetition_window: Annotated[
        int | None,
        Field(ge=1, description="tokens that the penalty sees (default: as `order` says)"),
    ] = None
    order: Annotated[
        OrderName, Field(description="in which order temperature and filters apply: hf or mlx")
    ] = "hf"
    max_tokens: Annotated[int, Field(ge=1, description="longest completion")] = 128
    stop: Annotated[tuple[str, ...], Field(description="texts before which a completion ends")] = ()
    stop_ids: Annotated[
        tuple[int, ...], Field(description="tokens that end a completion, besides the base's own")
    ] = ()
    ignore_eos: Annotated[bool, Field(description="the base's own stop tokens end nothing")] = False
    seed: Annotated[int, Field(ge=0, description="of every draw")] = 0

    @model_validator(mode="after")
    def _stops_say_something(self) -> Decoding:
        if "" in self.stop:
            raise ValueError("`stop` holds an empty text: every completion would end at once")
        for stop in self.stop:
            try:
                stop.encode()
            except UnicodeEncodeError:
                raise ValueError(f"`stop` holds {stop!r}, which is not UTF-8 text") from None
        return self

    @field_validator("temperature", "repetition_penalty")
    @classmethod
    def _logits_stay_numbers(cls, divisor: float) -> float:
        if 0 < divisor < SMALLEST or divisor > LARGEST:
            raise ValueError(f"{SMALLEST:g} to {LARGEST:g}; temperature 0 is greedy")
        return divisor

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    @property
    def window(self) -> int | None:
        """How many of the last tokens the repetition penalty sees; None for all."""
        return self.repetition_window or ORDERS[self.order].repetition_window

    def record(self) -> dict[str, Any]:
        """Every parameter as it is used, for people and for `samples.jsonl`."""
        return {**self.model_dump(mode="json"), "repetition_window": self.window}


def copy_numbers(prompts: Sequence[np.ndarray]) -> list[int]:
    """How many times each prompt was there before, from 0."""
    given: dict[bytes, int] = {}
    numbers = []
    for prompt in prompts:
        ids = prompt.astype("<i8").tobytes()
        numbers.append(given.get(ids, 0))
        given[ids] = numbers[-1] + 1
    return numbers


def request_keys(
    seed: int, prompts: Sequence[np.ndarray], copies: Sequence[int] | None = None
) -> list[Key]:
    """A key for each prompt, from its tokens and which of its copies it is (default: counted)."""
    return [
        Key.of(seed).fold("sample", prompt.astype("<i8").tobytes().hex(), number)
        for prompt, number in zip(prompts, copies or copy_numbers(prompts), strict=True)
    ]


Finish = Literal["stop token", "stop text", "max_tokens", "context"]


@dataclass(frozen=True)
class Completion:
    """What one member said on one prompt."""

    ids: tuple[int, ...]
    """Every token before the one that ended it; those of a stop text are included."""
    finish: Finish
    stopped_by: int | str | None = None
    """The stop token's id, or the stop text."""
