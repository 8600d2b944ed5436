"""What a configuration says of the method and of the optimiser (no torch)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from weft.core.batch import Batch, Example, spans
from weft.core.keys import Key
from weft.data.stream import batch_at, cycle_at, steps_per_epoch

AT_A_TIME = 32
"""Random directions held at a time."""


class StepsConfig(BaseModel):
    """What a method's steps cost and which rows they see: as long as it does not say otherwise,
    every epoch sees each row once, in an order of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    @abstractmethod
    def forwards(self) -> int:
        """Passes of one batch through the base in a step; a backward pass counts as one."""

    @abstractmethod
    def describe(self) -> str:
        """The configuration in a few words for people."""

    def rows(self, batch_size: int, count: int) -> int:
        """How many of `count` rows a step reads: as the run's `batch_size` says."""
        return batch_size

    def steps(self, batch_size: int, count: int, epochs: float) -> float:
        """How many steps read each of `count` rows so often; the last one may read fewer rows."""
        return epochs * steps_per_epoch(count, batch_size)

    def batch(self, examples: Sequence[Example], step: int, batch_size: int, key: Key) -> Batch:
        """The rows of a step, counted from 0: the next ones of the epoch's order."""
        return batch_at(examples, step, batch_size, key)


class BackpropConfig(StepsConfig):
    """The exact gradient of the loss, by automatic differentiation."""

    name: Literal["backprop"] = "backprop"

    @property
    def forwards(self) -> int:
        """A backward through frozen weights multiplies as often as a forward."""
        return 2

    def describe(self) -> str:
        """In a few words."""
        return "backprop: a forward and a backward a step"


class MezoConfig(StepsConfig):
    """Slopes along random directions, from losses alone (arXiv 2305.17333)."""

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

    @property
    def forwards(self) -> int:
        """Perturbed adapters, and theta itself where one side is enough.

        More than `AT_A_TIME` one-sided directions score theta once for each part.
        """
        if self.sides == "two":
            return 2 * self.directions
        return self.directions + len(list(spans(self.directions, AT_A_TIME)))

    def describe(self) -> str:
        """In a few words."""
        count = f"{self.directions} direction" + ("s" if self.directions > 1 else "")
        return (
            f"mezo: {self.sides}-sided, {count} a step, {self.noise}, eps {self.eps:g}, "
            f"{self.forwards} forwards a step"
        )


class NoiseConfig(BaseModel):
    """How far the members of a population lie from its centre."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    space: Annotated[
        Literal["weight", "factor", "fixed"],
        Field(
            description="weight: each update B @ A changes its weight by `fraction` of that "
            "weight's mean size; factor: A and B move by `fraction` of it, layer by layer; fixed: "
            "A and B move by `sigma`"
        ),
    ] = "weight"
    fraction: Annotated[
        float, Field(gt=0, description="of the mean absolute value of the base's weight")
    ] = 0.1
    sigma: Annotated[
        float | None, Field(gt=0, description="the size of noise on every parameter, for `fixed`")
    ] = None
    init_scale: Annotated[float, Field(gt=0, description="times that, in generation 0")] = 1.0
    perturb_scale: Annotated[float, Field(gt=0, description="times that, from then on")] = 1.0

    @model_validator(mode="after")
    def _only_its_own(self) -> NoiseConfig:
        if (self.space == "fixed") != (self.sigma is not None):
            raise ValueError("`space: fixed` and `sigma` go together: give both, or neither")
        if self.space == "fixed" and self.fraction != type(self).model_fields["fraction"].default:
            raise ValueError("`space: fixed` does not use `fraction`: leave it out")
        return self


class EsConfig(StepsConfig):
    """Evolution strategies: adapters around a centre, which moves to where rewards are better."""

    name: Literal["es"] = "es"
    population: Annotated[int, Field(ge=2, description="members of a generation")] = 30
    antithetic: Annotated[
        bool, Field(description="members in pairs, on either side of the centre")
    ] = True
    noise: NoiseConfig = NoiseConfig()
    shaping: Annotated[
        Literal["rank", "zscore"], Field(description="how rewards become the members' weights")
    ] = "rank"
    per_prompt: Annotated[
        bool, Field(description="compare members prompt by prompt, not by their mean rewards")
    ] = False
    samples_per_generation: Annotated[
        int | None,
        Field(ge=1, description="training rows of a generation, in turn (default: all rows)"),
    ] = None

    @model_validator(mode="after")
    def _pairs(self) -> EsConfig:
        if self.antithetic and self.population % 2:
            raise ValueError(
                f"`antithetic` makes pairs, and `population` is {self.population}: give an even "
                "number, or `antithetic: false`"
            )
        return self

    @property
    def forwards(self) -> int:
        """The centre is one more."""
        return self.population + 1

    def describe(self) -> str:
        """In a few words."""
        noise = self.noise
        size = (
            f"sigma {noise.sigma:g}"
            if noise.sigma is not None
            else f"{noise.fraction:.3g} of mean |W| in {noise.space} space"
        )
        scales = "" if noise.init_scale == 1 else f", x{noise.init_scale:g} in generation 0"
        scales += "" if noise.perturb_scale == 1 else f", x{noise.perturb_scale:g} after it"
        shaping = f"{self.shaping}, prompt by prompt" if self.per_prompt else self.shaping
        pairs = " in pairs" if self.antithetic else ""
        return f"es: {self.population} members{pairs}, noise {size}{scales}, weights by {shaping}"

    def rows(self, batch_size: int, count: int) -> int:
        """`samples_per_generation`, or all."""
        return min(self.samples_per_generation or count, count)

    def steps(self, batch_size: int, count: int, epochs: float) -> float:
        """An epoch may end within a generation, which goes on with the first rows."""
        return epochs * count / self.rows(batch_size, count)

    def batch(self, examples: Sequence[Example], step: int, batch_size: int, key: Key) -> Batch:
        """Generation g takes those from g * samples_per_generation on, and around again."""
        return cycle_at(examples, step, self.samples_per_generation)


MethodConfig = Annotated[BackpropConfig | MezoConfig | EsConfig, Field(discriminator="name")]
"""The configuration of any method; `name` says which (`weft.methods.registry.METHODS`)."""

OPTIMISER_DEFAULTS: dict[str, dict[str, Any]] = {
    "mezo": {"name": "sgd", "lr": 1e-4, "schedule": "constant", "clip": None},
    "es": {"name": "sgd", "lr": 0.5, "schedule": "constant", "clip": None, "decay_to": "start"},
}
"""What an optimiser is, where the method says otherwise than `OptimiserConfig`: a zeroth-order
direction is as long as the square root of the number of parameters, so no usual clip fits it. The
rate of `es` is in units of its noise."""

OWN_UNIT = ("es",)
"""Methods whose learning rates say nothing to others, nor others' to them."""


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
    decay_to: Annotated[
        Literal["zero", "start"], Field(description="where it pulls: to 0, or to the start")
    ] = "zero"
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
