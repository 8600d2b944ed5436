"""What a configuration says of the method and of the optimiser (no torch)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class BackpropConfig(BaseModel):
    """The exact gradient of the loss, by automatic differentiation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["backprop"] = "backprop"


class MezoConfig(BaseModel):
    """Slopes along random directions, from losses alone (arXiv 2305.17333)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Literal["mezo"] = "mezo"
    eps: Annotated[float, Field(gt=0, description="how far along a direction it looks")] = 1e-3
    directions: Annotated[int, Field(ge=1, description="directions of one step, averaged")] = 1
    sides: Annotated[
        Literal["two", "one"],
        Field(description="compare theta + eps z with theta - eps z, or with theta itself"),
    ] = "two"
    noise: Annotated[
        Literal["gaussian", "rademacher"], Field(description="the law of a direction's numbers")
    ] = "gaussian"
    preflight: Annotated[
        bool, Field(description="before the first step, see whether eps suits the loss")
    ] = True


MethodConfig = Annotated[BackpropConfig | MezoConfig, Field(discriminator="name")]
"""The configuration of any method; `name` says which (`weft.methods.registry.METHODS`)."""

OPTIMISER_DEFAULTS: dict[str, dict[str, Any]] = {
    "mezo": {"name": "sgd", "lr": 1e-4, "schedule": "constant", "clip": None},
}
"""What an optimiser is, where the method says otherwise than `OptimiserConfig`: a zeroth-order
direction is as long as the square root of the number of parameters, so no usual clip fits it."""


class PlateauConfig(BaseModel):
    """When a round of boosting counts as over: its validation loss no longer falls."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    patience: Annotated[int, Field(ge=1, description="evaluations without a better loss")] = 3
    min_delta: Annotated[float, Field(ge=0, description="what counts as better, in nats")] = 0.0


class BoostConfig(BaseModel):
    """A chain of rank-1 adapters (XGBLoRA, arXiv 2410.19694): train one, commit it, begin anew."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps_per_iteration: Annotated[
        int, Field(ge=0, description="commit every so many steps; 0 for never")
    ] = 0
    merge_frequency: Annotated[
        int, Field(ge=0, description="commit every so many epochs, without the above; 0 for never")
    ] = 0
    plateau: Annotated[
        PlateauConfig | None,
        Field(description="commit the round's best point once evaluations stop getting better"),
    ] = None
    merge: Annotated[
        Literal["stack", "weights"],
        Field(description="keep committed adapters as a frozen stack, or add them to the weights"),
    ] = "stack"
    optimiser: Annotated[
        Literal["reset", "keep"], Field(description="its moments when a new adapter begins")
    ] = "reset"
    warmup_steps: Annotated[
        int, Field(ge=0, description="steps in which a new adapter's rate rises; not the first's")
    ] = 0
    shrinkage: Annotated[
        float, Field(gt=0, le=1, description="the part of an adapter that is committed")
    ] = 1.0
    layers_per_round: Annotated[
        int | None, Field(ge=1, description="train so many layers a round, drawn anew for each")
    ] = None

    @model_validator(mode="after")
    def _one_trigger(self) -> BoostConfig:
        counted = {
            name: getattr(self, name)
            for name in ("steps_per_iteration", "merge_frequency")
            if getattr(self, name)
        }
        if self.plateau is not None and counted:
            given = " and ".join(f"`{name}` {value}" for name, value in counted.items())
            raise ValueError(
                f"`plateau` and {given} both say when to commit: give one of them, or 0 for the "
                "other"
            )
        return self


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
