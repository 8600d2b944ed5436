"""The frozen base model: loading, what it is called, and proof that it has not changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    OPTForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import NewGELUActivation

from weft.core.batch import Batch, Example
from weft.core.errors import InputError
from weft.data.tokenizer import load_tokenizer, resolve_base
from weft.model.adapter import Site
from weft.model.attention import NAME as PACKED
from weft.model.attention import counted_calls
from weft.model.bank import Bank
from weft.model.config import DType
from weft.model.lean import LeanModel, lean_model
from weft.model.rows import Block
from weft.model.sites import find_sites

DTYPES: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
"""What transformers raises for files that are missing, torn, or of another kind."""

HINT = "a base is `weft/tiny`, a directory with config.json and safetensors, or a hub id"


@dataclass(frozen=True, eq=False)
class Base:
    """A causal language model whose weights nothing in Weft writes.

    `packs` says how batches reach it: as one row without padding (the fast path, taken when
    a trial at loading time shows that it gives the model's own logits), or padded.
    """

    ref: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    packs: bool
    notice: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.model.dtype

    @property
    def body(self) -> torch.nn.Module:
        """The model without its output head."""
        return self.model.base_model

    @property
    def head(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight [V, D] and bias [V] of the output head."""
        layer = self.model.get_output_embeddings()
        return layer.weight, getattr(layer, "bias", None)

    @property
    def context(self) -> int | None:
        """The longest sequence that the model was built for, where its configuration says so."""
        return longest_text(self.model.config)

    @property
    def pad_id(self) -> int:
        """A token to fill padded rows with; it is masked, so any will do."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(i for i in ids if i is not None)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a completion: the model's and the tokenizer's end of sequence."""
        return _stop_ids(self.model.generation_config, self.tokenizer)

    @cached_property
    def lean(self) -> LeanModel | None:
        """How a Llama-like base takes a decoding step; its layers are joined when first asked."""
        return lean_model(self.model) if self.packs else None

    @cached_property
    def sites(self) -> dict[str, Site]:
        """Every place that can carry an adapter."""
        return find_sites(self.model)

    def fingerprint(self) -> str:
        """sha256 over names, shapes, dtypes and bytes of all weights, computed anew each time."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def load_base(ref: str, dtype: DType = "float32", device: str = "cpu") -> Base:
    """Load a base by name (`weft/tiny`), directory or hub id, frozen and in evaluation mode."""
    path = resolve_base(ref)
    tokenizer = load_tokenizer(ref)
    _check_device(device)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
        )
    except LOADING_ERRORS as error:
        raise InputError(
            f"base: cannot load a causal language model from {ref!r}: {first_line(error)}",
            hint=HINT,
        ) from error
    if lost := sorted([*report["missing_keys"], *report["mismatched_keys"]], key=str):
        raise InputError(
            f"base: {ref!r} has no usable weights for {lost[0]}"
            + (f" and {len(lost) - 1} more" if len(lost) > 1 else ""),
            hint="transformers would fill them with random numbers; fetch the base again",
        )
    return prepare(ref, model.to(device), tokenizer)


def _check_device(device: str) -> None:
    kind = device.split(":")[0]
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not have.get(kind, True):
        raise InputError(f"device: there is no {kind} device here", hint="use device=cpu")


def longest_text(config: PretrainedConfig) -> int | None:
    """The longest sequence that a configuration allows.

    A `longrope` base rotates every position differently once a text passes its original length.
    In a batch that would be the length of the longest text, and in a cache that of the moment:
    the context of such a base is the original one.
    """
    longest: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if longest is None or rope.get("rope_type") != "longrope":
        return longest
    return min(longest, rope.get("original_max_position_embeddings") or longest)


def stored_dtype(ref: str) -> DType | None:
    """The dtype of a base's files, as its configuration declares it; None where it does not."""
    declared = getattr(load_config(ref), "dtype", None)
    return next((name for name, dtype in DTYPES.items() if dtype == declared), None)


def built_sites(ref: str) -> dict[str, Site]:
    """The sites of a base, which transformers builds without weights."""
    config = load_config(ref)
    try:
        with torch.device("meta"):
            return find_sites(AutoModelForCausalLM.from_config(config))
    except LOADING_ERRORS as error:
        raise InputError(
            f"base: {ref!r} is not a causal language model: its type is {config.model_type!r}",
            hint=HINT,
        ) from error


def load_config(ref: str) -> PretrainedConfig:
    """What a base says of itself, as transformers reads it; no weights are read."""
    path = resolve_base(ref)
    try:
        return AutoConfig.from_pretrained(path)
    except LOADING_ERRORS as error:
        raise InputError(
            f"base: cannot read the configuration of {ref!r}: {first_line(error)}", hint=HINT
        ) from error


def generation_stops(ref: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The base's own stop tokens, as `Base.stop_ids` has them; no weights are read."""
    try:
        config = GenerationConfig.from_pretrained(resolve_base(ref))
    except OSError:
        config = GenerationConfig.from_model_config(load_config(ref))
    return _stop_ids(config, tokenizer)


def _stop_ids(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    named = config.eos_token_id
    named = named if isinstance(named, list) else [named]
    return frozenset(i for i in (*named, tokenizer.eos_token_id) if i is not None)


def prepare(ref: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Base:
    """A loaded model as a frozen base, in the fastest arrangement that gives its own logits."""
    model.eval().requires_grad_(False)
    _cheapen_activations(model)
    base = Base(ref, model, tokenizer, packs=False)
    obstacle = _obstacle_to_packing(base)
    if obstacle is None:
        built_for = getattr(model.config, "max_position_embeddings", None)
        shortened = f"context: {base.context} of {built_for} tokens, up to where longrope begins"
        notice = shortened if base.context != built_for else None
        return replace(base, packs=True, notice=notice)
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    name = type(model).__name__
    return replace(
        base, notice=f"{name} runs on padded batches: it cannot run without padding ({obstacle})"
    )


@torch.no_grad()
def _obstacle_to_packing(base: Base) -> str | None:
    """Why this model must see padded batches, found out by trial; None when it need not.

    Two members score two rows without padding. Every layer must come through packed attention,
    and the log-probabilities must be the model's own on each row: within rounding, and far closer
    than those of rows that see each other.
    """
    first, second = TRIAL
    own = torch.cat([_log_probs(base, [row]) for row in TRIAL])
    mixed = _log_probs(base, [first + second])[-len(own[len(first) - 1 :]) :]
    try:
        base.model.set_attn_implementation(PACKED)
        with counted_calls() as calls:
            packed = _log_probs(replace(base, packs=True), TRIAL, members=2)
    except Exception as error:  # whatever a foreign model raises, it cannot be packed
        return first_line(error)
    layers = base.model.config.get_text_config().num_hidden_layers
    if len(calls) < layers:
        return f"{len(calls)} of its {layers} layers use transformers' attention interface"
    gap = max(_gap(packed[n::2], own) for n in range(2))
    leak = _gap(mixed, own[len(first) - 1 :])
    if gap > min(TRIAL_TOLERANCE[base.dtype], leak / 4):
        return f"its log-probabilities then differ by {gap:.2g}"
    return None


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def _cheapen_activations(model: torch.nn.Module) -> None:
    """The same functions: GPT-2's GELU as one operation instead of eight, OPT's ReLU in place."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, NewGELUActivation):
                setattr(parent, name, torch.nn.GELU(approximate="tanh"))
            if isinstance(module, torch.nn.ReLU) and isinstance(model, OPTForCausalLM):
                module.inplace = True  # its input is fc1's output, which nothing else reads


TRIAL = ([3, 7, 5, 2, 9, 4], [8, 6, 3])
TRIAL_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Log-probability gap that rounding explains."""


def _log_probs(base: Base, rows: Sequence[list[int]], members: int = 1) -> torch.Tensor:
    """Log-probabilities [S * members, V], row by row, position by position, member by member."""
    from weft.model.forward import make_rows, target_logits
    from weft.model.weaving import Weft

    examples = [Example(str(i), np.array(r), np.array(r)) for i, r in enumerate(rows)]
    made = make_rows(base, [Block(0, members, Batch(tuple(examples)))])
    row_S = made.targets.cell_S % len(rows)
    weft = Weft(Bank(tuple(map(str, range(members))), {}))
    return target_logits(base, weft, made).log_softmax(-1)[row_S.argsort(stable=True)]


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
