"""What a configuration says of the base and of the adapter (no torch: read by `weft check`)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from weft.model.decoding import Decoding

DType = Literal["float32", "bfloat16", "float16"]

ALIASES = {"block_sparse_moe.gate": "mlp.gate"}
"""Public target names of older transformers, and what the same module is called now."""


class NllConfig(BaseModel):
    """Negative log-likelihood of the supervised tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["nll"] = "nll"


class ChoiceConfig(BaseModel):
    """Negative log-likelihood of the right one among a task's candidates."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["choice"] = "choice"
    loss: Annotated[
        Literal["candidates", "option"],
        Field(
            description="candidates: cross-entropy over them; option: negative log-likelihood of "
            "the right one's tokens among all tokens"
        ),
    ] = "candidates"
    tokens: Annotated[
        Literal["auto", "one", "mean"],
        Field(
            description="how candidates are compared. one: at one position, each being a single "
            "token; mean: by the mean log-probability of their tokens; auto: one where it can be"
        ),
    ] = "auto"

    @model_validator(mode="after")
    def _only_its_own(self) -> ChoiceConfig:
        if self.loss == "option" and self.tokens != "auto":
            raise ValueError("`loss: option` compares no candidates: leave `tokens` out")
        return self


class RewardConfig(BaseModel):
    """Sample completions, and let the task, or a function of yours, grade them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["reward"] = "reward"
    mode: Annotated[
        Literal["strict", "paper"],
        Field(description="of countdown. paper: with the holes of the published grader"),
    ] = "strict"
    file: Annotated[
        Path | None, Field(description="a Python file with a reward of yours (default: the task's)")
    ] = None
    function: Annotated[str, Field(description="its function: (row, completion) to a number")] = (
        "reward"
    )
    timeout: Annotated[
        float, Field(gt=0, description="seconds that it may take for one completion")
    ] = 5.0
    decoding: Annotated[
        Decoding, Field(description="how completions are sampled; the run's seed draws")
    ] = Decoding()

    @model_validator(mode="after")
    def _the_seed_is_the_run_s(self) -> RewardConfig:
        if self.decoding.seed:
            raise ValueError("`decoding.seed`: the run's own `seed` draws: leave it out")
        return self


ObjectiveConfig = Annotated[NllConfig | ChoiceConfig | RewardConfig, Field(discriminator="name")]
"""What is optimised; `name` says which."""


class AdapterConfig(BaseModel):
    """The low-rank change that is trained: dW = scale * B @ A at each target."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rank: Annotated[int, Field(ge=1, description="r, the inner dimension of B @ A")] = 8
    alpha: Annotated[
        float | None, Field(gt=0, description="scale = alpha / rank (default: 2 * rank)")
    ] = None
    scale: Annotated[
        float | None, Field(gt=0, description="the multiplier of B @ A itself, instead of alpha")
    ] = None
    rslora: Annotated[bool, Field(description="scale = alpha / sqrt(rank)")] = False
    dropout: Annotated[
        float, Field(ge=0, lt=1, description="dropout on the input of A, while training")
    ] = 0.0
    targets: Annotated[
        tuple[str, ...] | Literal["all-linear"],
        Field(description="module names, or suffixes of them, or all-linear (all but the head)"),
    ] = "all-linear"
    layers: Annotated[
        tuple[int, ...] | str | None,
        Field(description="`last N`, `first N`, or a list of layer numbers (default: all layers)"),
    ] = None

    init: Annotated[
        Literal["random", "zero"],
        Field(description="the start: A random and B zero, or both zero"),
    ] = "random"
    factors: Annotated[
        Literal["both", "b"], Field(description="train A and B, or B only with A as it is drawn")
    ] = "both"

    @model_validator(mode="after")
    def _one_scale(self) -> AdapterConfig:
        if self.scale is not None and (self.alpha is not None or self.rslora):
            raise ValueError("`scale` is the multiplier itself: give it, or alpha and rslora")
        if isinstance(self.layers, str) and not re.fullmatch(r"(last|first) [1-9]\d*", self.layers):
            raise ValueError(f"`layers` is `last N`, `first N` or a list, not {self.layers!r}")
        if not self.targets:
            raise ValueError("`targets` is empty: nothing would be trained")
        return self

    @property
    def effective_scale(self) -> float:
        """The one multiplier of B @ A that follows from alpha, rank, rslora or scale."""
        if self.scale is not None:
            return self.scale
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return alpha / math.sqrt(self.rank) if self.rslora else alpha / self.rank

    @property
    def effective_alpha(self) -> float:
        """The alpha that gives `effective_scale` by the rule in force."""
        root = math.sqrt(self.rank) if self.rslora else self.rank
        return self.effective_scale * root
