"""What a configuration says of the method and of the optimiser (no torch)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class BackpropConfig(BaseModel):
    """The exact gradient of the loss, by automatic differentiation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["backprop"] = "backprop"


MethodConfig = BackpropConfig
"""The configuration of any method; `name` says which (`weft.methods.registry.METHODS`)."""


class OptimiserConfig(BaseModel):
    """How a direction becomes an update."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    betas: Annotated[tuple[float, float], Field(description="decay of AdamW's two moments")] = (
        0.9,
        0.999,
    )
    eps: Annotated[float, Field(gt=0, description="AdamW's guard against division by 0")] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, description="decoupled weight decay")] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1, description="SGD's momentum")] = 0.0
    clip: Annotated[
        float | None, Field(gt=0, description="largest norm of a direction; null for no limit")
    ] = 1.0

    @property
    def lrs(self) -> tuple[float, ...]:
        """The learning rates, one or several."""
        return self.lr if isinstance(self.lr, tuple) else (self.lr,)
