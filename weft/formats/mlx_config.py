"""mlx-lm's `adapter_config.json`: what it says of the scale, and of more than plain LoRA."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveInt

from weft.formats import mlx_scale
from weft.formats.loaded import ScaleCandidate
from weft.formats.mlx_places import Found


class LoraParameters(BaseModel):
    """mlx-lm's `lora_parameters`; `alpha` counted until 2024-06-02."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    rank: PositiveInt | None = None
    scale: FiniteFloat | None = None
    alpha: FiniteFloat | None = None


class MlxConfig(BaseModel):
    """The fields that decide what the tensors mean. mlx-lm stores all settings of its run."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    fine_tune_type: str | None = "lora"
    use_dora: bool | None = False
    num_layers: int | None = None
    lora_parameters: LoraParameters | None = None
    model: str | None = None

    @property
    def lora(self) -> LoraParameters:
        """What it says of the factors: nothing, in a full fine-tuning."""
        return self.lora_parameters or LoraParameters()


def beyond_lora(config: MlxConfig) -> list[str]:
    """The fields with which the tensors are no plain factors."""
    problems = []
    if config.fine_tune_type not in (None, "lora"):
        problems.append(f"`fine_tune_type` is {config.fine_tune_type!r}")
    if config.use_dora:
        problems.append("`use_dora` is True")
    return problems


def candidates(config: MlxConfig, found: Found[Any]) -> tuple[list[ScaleCandidate], bool]:
    """What the scale may be, and whether the files determine it."""
    said = config.lora
    if said.scale is None:
        return mlx_scale.without_config(npz=False, meta=bool(found.meta)), False
    rank = said.rank or next(iter(found.pairs.values()))["lora_a"].shape[1]
    return mlx_scale.of_config(said.scale, rank, said.alpha, dated=config.num_layers is not None)
