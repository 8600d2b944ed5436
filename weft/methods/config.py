"""What a configuration says of the method and of the optimiser (no torch)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class BackpropConfig(BaseModel):
    """The exact gradient of the loss, by automatic differentiation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["backprop"] = "backprop"


MethodConfig = BackpropConfig
"""The configuration of any method; `name` says which (`weft.methods.registry.METHODS`)."""


Beta = Annotated[float, Field(ge=0, lt=1)]

FOREIGN = {"adamw": ("momentum",), "sgd": ("betas", "eps")}
"""The settings that a rule does not read, and that must therefore not be set."""


class OptimiserConfig(BaseModel):
    """How a direction becomes an update."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[Literal["adamw", "sgd"], Field(description="the update rule")] = "adamw"
    lr: Annotated[
        float | tuple[float, ...],
        Field(description="learning rate; a list trains one adapter for each, in one run"),
    ] = 2e-4
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Field(description="what the learning rate does after the warm-up"),
    ] = "linear"
    warmup_ratio: Annotated[
        float, Field(ge=0, lt=1, description="part of the steps in which the rate rises linearly")
    ] = 0.0
    betas: Annotated[tuple[Beta, Beta], Field(description="decay of AdamW's two moments")] = (
        0.9,
        0.999,
    )
    eps: Annotated[float, Field(gt=0, description="AdamW's guard against division by 0")] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, description="decoupled weight decay")] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1, description="SGD's momentum")] = 0.0
    clip: Annotated[
        float | None, Field(gt=0, description="largest norm of a direction; null for no limit")
    ] = 1.0

    @model_validator(mode="after")
    def _only_its_own(self) -> OptimiserConfig:
        fields = type(self).model_fields
        foreign = [n for n in FOREIGN[self.name] if getattr(self, n) != fields[n].default]
        if foreign:
            keys = " and ".join(f"`{name}`" for name in foreign)
            raise ValueError(f"{self.name} does not use {keys}: leave it out")
        return self

    @property
    def lrs(self) -> tuple[float, ...]:
        """The learning rates, one or several."""
        return self.lr if isinstance(self.lr, tuple) else (self.lr,)
