"""The configuration of a run: one section a concern, each declared by its owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from weft.data.config import DataConfig
from weft.engines.config import EngineConfig, LocalConfig, own_engine
from weft.methods.config import (
    OPTIMISER_DEFAULTS,
    BackpropConfig,
    BoostConfig,
    MethodConfig,
    OptimiserConfig,
)
from weft.model.config import AdapterConfig, DType, NllConfig, ObjectiveConfig

DEVICE = r"^(cpu|cuda(:\d+)?|mps)$"
"""The devices that a base can be on."""


@dataclass(frozen=True)
class Lane:
    """One adapter of a run: its seed and its learning rate."""

    name: str
    seed: int
    lr: float


class EvalConfig(BaseModel):
    """When and how the validation split is scored while training."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    every: Annotated[int, Field(ge=0, description="steps between evaluations; 0 for none")] = 50
    batch_size: Annotated[int, Field(ge=1, description="rows of one forward")] = 32
    rows: Annotated[
        int | None, Field(ge=1, description="first rows of the split to score (default: all)")
    ] = None


class RunConfig(BaseModel):
    """Everything that determines a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str | None, Field(description="names the run directory")] = None
    description: Annotated[str, Field(description="one line for people")] = ""
    base: Annotated[str, Field(description="weft/tiny, a directory, or a hub id")] = "weft/tiny"
    dtype: Annotated[DType, Field(description="of the base; adapters and losses are fp32")] = (
        "float32"
    )
    device: Annotated[str, Field(pattern=DEVICE)] = "cpu"
    base_dropout: Annotated[
        bool, Field(description="let the base use its own dropout while training")
    ] = False
    data: DataConfig
    adapter: AdapterConfig = AdapterConfig()
    method: MethodConfig = BackpropConfig()
    boost: Annotated[
        BoostConfig | None, Field(description="train a chain of rank-1 adapters (default: one)")
    ] = None
    objective: ObjectiveConfig = NllConfig()
    start: Annotated[
        str | None, Field(description="a run or an adapter to start from (default: a fresh one)")
    ] = None
    engine: Annotated[
        EngineConfig, Field(description="what samples completions, where the objective is a reward")
    ] = LocalConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    batch_size: Annotated[int, Field(ge=1, description="rows of one step")] = 4
    micro_batch_size: Annotated[
        int | None,
        Field(ge=1, description="rows of one forward: gradient accumulation (default: all)"),
    ] = None
    steps: Annotated[int | None, Field(ge=1, description="length in steps")] = None
    epochs: Annotated[
        float | None,
        Field(gt=0, le=1e6, description="length in passes over the training split"),
    ] = None
    eval: EvalConfig = EvalConfig()
    keep: Annotated[
        Literal["best", "last"], Field(description="which adapter the run ends with")
    ] = "best"
    checkpoint_every: Annotated[int, Field(ge=1, description="steps between checkpoints")] = 50
    members_per_forward: Annotated[
        int | None,
        Field(ge=1, description="adapters in one forward (default: as many as read 8,192 tokens)"),
    ] = None
    trunk_memory_mib: Annotated[
        int,
        Field(ge=0, description="kept of what the layers below the first adapted one make of rows"),
    ] = 512
    seed: Annotated[int, Field(ge=0, description="of every draw in the run")] = 0
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...] | None,
        Field(min_length=1, description="train one adapter for each, in one run"),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _optimiser_of_the_method(cls, values: Any) -> Any:
        """Fill in what the method's usual optimiser is, where nothing else is given."""
        method = values.get("method") if isinstance(values, dict) else None
        name = method.get("name") if isinstance(method, dict) else None
        given = values.get("optimiser", {}) if isinstance(values, dict) else None
        usual = OPTIMISER_DEFAULTS.get(name) if isinstance(name, str) else None
        if usual is None or not isinstance(given, dict):
            return values
        return {**values, "optimiser": {**usual, **given}}

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        problems = [*self._boosting_problems()]
        noisy = [
            f"`{key}` to {off} (it is {str(value).lower()})"
            for key, value, off in (
                ("adapter.dropout", self.adapter.dropout, 0),
                ("base_dropout", self.base_dropout, "false"),
            )
            if value
        ]
        if self.method.name != "backprop" and noisy:
            problems.append(
                f"`{self.method.name}` compares adapters, which dropout would make noisy: set "
                f"{' and '.join(noisy)}"
            )
        problems += [*self._start_problems(), *self._reward_problems()]
        if (self.steps is None) == (self.epochs is None):
            problems.append("give `steps` or `epochs`, one of the two")
        if self.seeds is not None and len(set(self.seeds)) != len(self.seeds):
            problems.append(f"`seeds` {list(self.seeds)} names one twice")
        lrs = self.optimiser.lrs
        if not lrs or min(lrs) <= 0 or len(set(lrs)) != len(lrs):
            problems.append(f"`optimiser.lr` must be positive and different, got {list(lrs)}")
        elif len({f"{lr:g}" for lr in lrs}) != len(lrs):
            problems.append(
                f"`optimiser.lr` {list(lrs)} has two that are the same in six digits, by which "
                "their adapters are named"
            )
        unread = [n for n in ("train_on_prompt", "pad_target") if getattr(self.data, n)]
        if self.objective.name == "choice" and unread:
            keys = " and ".join(f"`data.{name}`" for name in unread)
            problems.append(
                f"`objective.name` choice reads no tokens but prompts and candidates: leave {keys} "
                "out"
            )
        if self.base_dropout and len(self.lanes) > 1:
            problems.append(
                "`base_dropout` draws one noise for the whole forward, so it cannot be used when "
                "several adapters train in one run"
            )
        if self.keep == "best" and self.eval.every == 0:
            problems.append("`keep: best` needs evaluations: set `eval.every`, or `keep: last`")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _boosting_problems(self) -> list[str]:
        if self.boost is None:
            return []
        problems = []
        if self.adapter.rank != 1:
            problems.append(
                f"`boost` trains rank-1 adapters, got `adapter.rank` {self.adapter.rank}"
            )
        if self.boost.plateau is not None and self.eval.every == 0:
            problems.append("`boost.plateau` needs evaluations: set `eval.every`")
        return problems

    def _start_problems(self) -> list[str]:
        problems = []
        if self.adapter.init == "zero":
            if self.method.name != "es":
                problems.append(
                    f"`adapter.init: zero` is where `{self.method.name}` sees no direction: at "
                    "A = B = 0 the gradient is 0; leave it out"
                )
            elif self.method.antithetic:
                problems.append(
                    "`adapter.init: zero` is where both members of a pair are the same, since the "
                    "function of (A, B) is that of (-A, -B): set `method.antithetic: false`"
                )
            if self.adapter.factors == "b":
                problems.append(
                    "`adapter.init: zero` goes with `adapter.factors: both`: B alone does nothing "
                    "where A is zero"
                )
            if self.start is not None or self.boost is not None:
                problems.append("`adapter.init: zero` goes with neither `start` nor `boost`")
        if self.start is not None and self.boost is not None:
            problems.append("`boost` begins with a fresh adapter: leave `start` out")
        if self.optimiser.decay_to == "start" and self.optimiser.weight_decay and self.boost:
            problems.append(
                "`boost` begins with a new adapter each round: set `optimiser.decay_to: zero`"
            )
        return problems

    def _reward_problems(self) -> list[str]:
        problems = []
        is_reward = self.objective.name == "reward"
        if is_reward and self.method.name != "es":
            problems.append(
                f"`objective.name` is reward, and `{self.method.name}` needs a loss: use "
                "`method.name: es`"
            )
        samples = own_engine(self.engine).name
        if self.engine.name == "ray" and self.method.name != "es":
            problems.append(
                f"`engine.name` ray shares out the populations of `es`, and `{self.method.name}` "
                "has none: leave `engine` out"
            )
        elif not is_reward and samples != "local":
            problems.append(
                f"`engine.name` {samples} samples completions, and `objective.name` "
                f"{self.objective.name} is a loss, which this process computes: leave `engine` out"
            )
        if self.engine.name != "local" and self.boost and self.boost.merge == "weights":
            problems.append(
                f"`boost.merge: weights` changes the base, which `engine.name` {self.engine.name} "
                "has its own copy of: use `merge: stack`"
            )
        if (
            self.method.name == "es"
            and self.batch_size != type(self).model_fields["batch_size"].default
        ):
            problems.append(
                f"`batch_size` is {self.batch_size}, and `es` does not read it: use "
                "`method.samples_per_generation`"
            )
        return problems

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The adapters that this run trains: every seed with every learning rate."""
        seeds = self.seeds or (self.seed,)
        lrs = self.optimiser.lrs
        return tuple(
            Lane(_lane_name(seed, lr, len(seeds) > 1, len(lrs) > 1), seed, lr)
            for seed in seeds
            for lr in lrs
        )


def _lane_name(seed: int, lr: float, many_seeds: bool, many_lrs: bool) -> str:
    parts = [f"seed-{seed}"] * many_seeds + [f"lr-{lr:g}"] * many_lrs
    return "-".join(parts) or "adapter"
