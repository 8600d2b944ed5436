"""The MLX engine: mlx-lm's own models, layers and caches, with Weft's decode loop and sums.

MLX has no bank, so members run one after the other, each in a model of its own that shares every
weight of the base. A member that changes nothing is the base itself.

Shapes: N members, E examples, T positions of one example, S supervised ones, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import torch
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.lora import LoRALinear
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from weft.core.batch import IGNORE, Batch, Example
from weft.core.errors import InputError
from weft.data.stream_text import Detokeniser
from weft.data.tokenizer import load_tokenizer, resolve_base
from weft.engines.engine import Scores
from weft.engines.mlx_stepper import MlxStepper, slides
from weft.formats.mlx_names import to_mlx
from weft.model.adapter import Site
from weft.model.bank import Bank
from weft.model.base import HINT, LOADING_ERRORS, first_line, load_config
from weft.model.config import DType
from weft.model.decode import OnToken, Stepper, check_prompts, decode
from weft.model.decoding import Completion, Decoding
from weft.model.facts import skeleton
from weft.model.objectives import TOKENS, Objective
from weft.model.witness import Witness

DTYPES: dict[DType, mx.Dtype] = {
    "float32": mx.float32,
    "bfloat16": mx.bfloat16,
    "float16": mx.float16,
}


@dataclass(frozen=True, eq=False)
class MlxEngine:
    """Forwards of one base by mlx-lm, with adapters in mlx-lm's own LoRA layers."""

    ref: str
    model: nn.Module
    config: PretrainedConfig
    dtype: DType
    tokenizer: PreTrainedTokenizerBase
    sites: Mapping[str, Site]
    context: int | None
    """The longest sequence on which mlx-lm computes what the base's configuration says."""
    stop_ids: frozenset[int]
    name: str = "mlx"

    def record(self) -> dict[str, str]:
        """What computes: name, device, dtype and versions."""
        return {
            "name": self.name,
            "device": mx.default_device().type.name,
            "dtype": self.dtype,
            **{package: version(package) for package in ("mlx", "mlx-lm")},
        }

    def score(self, bank: Bank, batch: Batch, objective: Objective = TOKENS) -> Scores:
        """Every member on every example: a forward for each row, without padding."""
        rows = objective.token_rows(batch).examples
        shape = (len(bank.members), len(rows))
        loss_NR, correct_NR = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        for member in range(shape[0]):
            model = self.adapted(bank, member)
            for column, row in enumerate(rows):
                cell = (member, column)
                loss_NR[cell], correct_NR[cell] = _score(model, row)
        loss_NE, correct_NE = objective.of_tokens(
            batch, torch.from_numpy(loss_NR), torch.from_numpy(correct_NR)
        )
        return Scores(loss_NE.numpy(), correct_NE.numpy(), objective.counts(batch))

    def generate(
        self,
        bank: Bank,
        prompts: Sequence[np.ndarray],
        decoding: Decoding,
        on_token: OnToken | None = None,
        copies: Sequence[int] | None = None,
        witness: Witness | None = None,
    ) -> list[list[Completion]]:
        """The continuation of every prompt under every member: [member][prompt].

        A `witness` sees the logits.
        """
        check_prompts(prompts, self.context)
        tokenizer = self.tokenizer
        members = range(len(bank.members))
        stepper: Stepper = MlxStepper([self.adapted(bank, member) for member in members], prompts)
        if witness is not None:
            rows = [[(member, number)] for number in range(len(prompts)) for member in members]
            stepper = witness.watching(stepper, rows)
        return decode(
            stepper,
            bank.members,
            prompts,
            decoding,
            stop_ids=self.stop_ids,
            context=self.context,
            detokenise=lambda number: Detokeniser(tokenizer, prompts[number]),
            on_token=on_token,
            copies=copies,
        )

    def adapted(self, bank: Bank, member: int) -> nn.Module:
        """mlx-lm's model with one member's factors; it shares the weights of the base.

        Sites that the member does not change keep the base's own layer.
        """
        layers = [
            self._lora(name, weave.a_NrI[member], weave.b_NOr[member], weave.scale_N11[member])
            for name, weave in bank.sites.items()
            if weave.b_NOr[member].any()
        ]
        if not layers:
            return self.model
        shared = {id(weight): weight for _, weight in tree_flatten(self.model.parameters())}
        model = copy.deepcopy(self.model, shared)
        model.update_modules(tree_unflatten(layers))
        return model.eval()

    def _lora(
        self, site: str, a_rI: torch.Tensor, b_Or: torch.Tensor, scale: torch.Tensor
    ) -> tuple[str, LoRALinear]:
        """mlx-lm's name of a site, and its layer there with these factors."""
        name = to_mlx(site, self.config)
        linear = dict(self.model.named_modules()).get(name)
        if not isinstance(linear, (nn.Linear, nn.QuantizedLinear)):
            raise InputError(
                f"the adapter changes {site}, which mlx-lm's model of {self.ref} does not have as "
                "a linear layer",
                hint="--engine local runs it",
            )
        layer = LoRALinear.from_base(linear, r=a_rI.shape[0], scale=scale.item())
        layer.lora_a, layer.lora_b = (mx.array(x.float().cpu().numpy().T) for x in (a_rI, b_Or))
        return name, layer

    def close(self) -> None:
        """Nothing is held beside this process."""


def open_mlx(ref: str, dtype: DType = "float32") -> MlxEngine:
    """Load a base by name, directory or hub id as mlx-lm does; no code of the base is ever run."""
    path = resolve_base(ref)
    tokenizer, ours = load_tokenizer(ref), load_config(ref)
    try:
        model, _, config = mlx_lm.load(
            path, model_config=older_keys(ours), lazy=True, return_config=True
        )
        model.set_dtype(DTYPES[dtype])
        mx.eval(model.parameters())
    except (*LOADING_ERRORS, TypeError) as error:
        raise InputError(
            f"base: mlx-lm cannot load {ref!r}: {first_line(error)}",
            hint=f"--engine local runs what transformers can; {HINT}",
        ) from error
    ends = config.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    return MlxEngine(
        ref,
        model.eval(),
        ours,
        dtype,
        tokenizer,
        skeleton(ref),
        _context(ours, model),
        frozenset(i for i in (*ends, tokenizer.eos_token_id) if i is not None),
    )


def older_keys(config: PretrainedConfig) -> dict[str, Any]:
    """What transformers 5 writes under new keys, under those that mlx-lm reads.

    Without them mlx-lm would take its own defaults: a wrong base frequency of the rotary
    embedding, for one, and no error.
    """
    keys: dict[str, Any] = {}
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" in rope:
        keys["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            keys["rope_scaling"] = rope
    if config.model_type == "gpt2":
        keys["n_ctx"] = config.n_positions
    return keys


def _context(config: PretrainedConfig, model: nn.Module) -> int | None:
    """The model's context; its window where mlx-lm's model has none: up to there they agree."""
    limits = [getattr(config, "max_position_embeddings", None)]
    if not slides(model):
        limits.append(getattr(config, "sliding_window", None))
    return min((limit for limit in limits if limit is not None), default=None)


def _score(model: nn.Module, example: Example) -> tuple[float, int]:
    """Sum of the losses and number of hits at the supervised positions of one row."""
    at_S = np.flatnonzero(example.labels_T[1:] != IGNORE)
    if not len(at_S):
        return 0.0, 0
    logits_TV = model(mx.array(example.ids_T[:-1])[None])[0]
    logits_SV = logits_TV[mx.array(at_S)].astype(mx.float32)
    token_S = mx.array(example.labels_T[1:][at_S])
    own_S = mx.take_along_axis(logits_SV, token_S[:, None], axis=1)[:, 0]
    nll_S = np.array(mx.logsumexp(logits_SV, axis=1) - own_S)
    return float(nll_S.sum(dtype=np.float64)), int((logits_SV.argmax(axis=1) == token_S).sum())
