"""Replicas on a plain PyTorch engine: transformers' own model, adapters as forward hooks.

Shapes: N readings, T positions, V vocabulary, S positions asked for, L blocks, D hidden size.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.data.tokenizer import resolve_base
from weft.diagnose.proof.feeding import Reading
from weft.diagnose.proof.replica import BaseValue, Moment, Replica, Update, Updates
from weft.diagnose.proof.tying import retied
from weft.model.base import LOADING_ERRORS, first_line
from weft.model.noise import global_generator, rademacher

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
NUMBERS = 24_000_000
"""Logits held at a time."""

KEPT = 8
"""Bases with weights of their own that are kept at a time."""


class Unspliced(Exception):
    """A stage of a replica that cannot be run here; says why."""


class Engine:
    """Runs replicas, and counts the forwards that it took."""

    def __init__(self, override: str | None = None) -> None:
        """`override` is the base to load in place of what a side names."""
        self.forwards = 0
        self._override = override
        self._loaded: dict[tuple, nn.Module] = {}
        self._made: dict[tuple, tuple[BaseValue, nn.Module]] = {}

    def model(self, base: BaseValue) -> nn.Module:
        """The base's model in evaluation mode, frozen; do not write to it."""
        changed = tuple((name, id(each)) for name, each in sorted(base.changed.items()))
        merged = tuple((n, id(u.a_RI), id(u.b_OR), u.scale) for n, u in sorted(base.merged.items()))
        key = (*_form(base), changed, merged, base.tied, not base.digests)
        if key not in self._made:
            if len(self._made) >= KEPT:
                self._made.pop(next(iter(self._made)))
            made = retied(_changed(self._plain(base), base), base, self._override)
            self._made[key] = base, made
        return self._made[key][1]

    def own(self, base: BaseValue) -> nn.Module:
        """A copy of it that may be written to."""
        return copy.deepcopy(self.model(base))

    def _plain(self, base: BaseValue) -> nn.Module:
        key = _form(base)
        if key not in self._loaded:
            self._loaded[key] = (
                _load(self._override or base.load, base).eval().requires_grad_(False)
            )
        return self._loaded[key]

    @torch.no_grad()
    def logits(
        self,
        base: BaseValue,
        updates: Updates,
        read: Sequence[Reading],
        *,
        nudge: Key | None = None,
        dropping: Key | None = None,
        most: int | None = None,
    ) -> list[torch.Tensor]:
        """Float32 logits [S, V] of each reading, in order, on the CPU.

        `nudge` moves embeddings by about one unit in the last place, `dropping` puts dropout to
        work, at most `most` readings share a forward.
        """
        model = self.model(base)
        found: list[torch.Tensor | None] = [None] * len(read)
        with ExitStack() as stack:
            stack.enter_context(woven(model, updates, training=dropping is not None))
            if nudge is not None:
                stack.enter_context(nudged(model, nudge))
            if dropping is not None:
                stack.enter_context(global_generator(dropping))
                model.train()
                stack.callback(model.eval)
            for batch in batches(read, _vocabulary(model), most or len(read)):
                inputs = tensors([read[n] for n in batch], model)
                logits_NTV = model(**inputs, use_cache=False).logits
                self.forwards += 1
                for i, n in enumerate(batch):
                    found[n] = logits_NTV[i, list(read[n].outs)].float()
        return [each for each in found if each is not None]

    def merged(self, replica: Replica) -> Replica:
        """The replica with its adapters in the weights of its bases, rounded to their dtype."""

        def into(number: int, moment: Moment) -> Moment:
            both = dict(moment.base.merged)
            for name, each in moment.adapter.items():
                both[name] = both[name].plus(each) if name in both else each
            return Moment(replace(moment.base, merged=both, digests={}))

        return replica.at_each(into)

    @torch.no_grad()
    def hidden(self, base: BaseValue, updates: Updates, read: Sequence[Reading]) -> np.ndarray:
        """Hidden states [L + 1, N, D] float32 at each reading's first asked position.

        The first is what the first block is given, the others what each block gives.
        """
        model = self.model(base)
        found = []
        seen: dict[int, torch.Tensor] = {}

        def before(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            seen[0] = args[0] if args else kwargs["hidden_states"]

        def after(number: int) -> Callable[[nn.Module, tuple, Any], None]:
            def hook(block: nn.Module, args: tuple, out: Any) -> None:
                seen[number] = out[0] if isinstance(out, tuple) else out

            return hook

        with ExitStack() as stack:
            stack.enter_context(woven(model, updates))
            handles = [blocks(model)[0].register_forward_pre_hook(before, with_kwargs=True)]
            handles += [
                block.register_forward_hook(after(n))
                for n, block in enumerate(blocks(model), start=1)
            ]
            for handle in handles:
                stack.callback(handle.remove)
            for reading in read:
                model(**tensors([reading], model), use_cache=False)
                self.forwards += 1
                at = reading.outs[0]
                found.append(torch.stack([seen[n][0, at].float() for n in sorted(seen)]))
        return torch.stack(found, 1).numpy()


def blocks(model: nn.Module) -> nn.ModuleList:
    """The layers of a decoder: its longest list of modules."""
    lists = [each for each in model.modules() if isinstance(each, nn.ModuleList)]
    if not lists:
        raise Unspliced(f"{type(model).__name__} has no blocks")
    return max(lists, key=len)


def _form(base: BaseValue) -> tuple:
    return base.load, base.dtype, base.attention


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars that transformers draws while it loads."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load(ref: str | None, base: BaseValue) -> nn.Module:
    dtype = DTYPES.get(base.dtype.removeprefix("torch."), torch.float32)
    options: dict[str, Any] = {"dtype": dtype}
    if base.attention in ("eager", "sdpa"):  # others are the same function, or not to be had here
        options["attn_implementation"] = base.attention
    try:
        if ref is not None:
            return AutoModelForCausalLM.from_pretrained(
                resolve_base(ref), use_safetensors=True, **options
            )
        if not base.config.get("model_type"):
            raise Unspliced("the recording does not say from where the base can be loaded")
        given = {k: v for k, v in base.config.items() if k not in ("model_type", "dtype")}
        config = AutoConfig.for_model(base.config["model_type"], **given)
        model = AutoModelForCausalLM.from_config(config, **options)
    except (InputError, *LOADING_ERRORS) as error:
        raise Unspliced(f"the base {ref!r} cannot be loaded: {first_line(error)}") from None
    lost = {name for name, _ in model.named_parameters()} - set(base.changed)
    if lost:
        raise Unspliced(f"the weights of the base were not recorded: {sorted(lost)[0]}")
    return model


def _changed(model: nn.Module, base: BaseValue) -> nn.Module:
    """A model with tensors of its own where the base has changed; all others are shared."""
    if not base.changed and not base.merged:
        return model
    shared = (*model.parameters(), *model.buffers())
    made: nn.Module = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for name, array in base.changed.items():
        where, leaf = _owner(made, name)
        old = getattr(where, leaf)
        if tuple(old.shape) != array.shape:
            raise Unspliced(f"{name} is {tuple(old.shape)} in the base and {array.shape} recorded")
        _put(where, leaf, torch.from_numpy(np.array(array)))
    for name, update in base.merged.items():
        where, leaf = _owner(made, f"{name}.weight")
        _put(where, leaf, merge(getattr(where, leaf), update))
    return made


def _put(where: nn.Module, leaf: str, data: torch.Tensor) -> None:
    old = getattr(where, leaf)
    data = data.to(old.dtype)
    setattr(where, leaf, nn.Parameter(data, False) if isinstance(old, nn.Parameter) else data)


def merge(held: torch.Tensor, update: Update) -> torch.Tensor:
    """A weight with an update in it, in its dtype, whichever way round it lies."""
    delta = torch.from_numpy(update.delta_OI)
    delta = delta if delta.shape == held.shape else delta.T
    if delta.shape != held.shape:
        raise Unspliced(f"an update of {tuple(delta.shape)} does not fit {tuple(held.shape)}")
    return (held.double() + delta).to(held.dtype)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has a tensor, and its name there.

    A hand-written wrapper may keep the layer that it wraps under a name of its own: `q_proj.inner`
    is then the base's `q_proj`.
    """
    *parts, leaf = name.split(".")
    for path in (parts, *([*parts[:n], *parts[n + 1 :]] for n in reversed(range(len(parts))))):
        try:
            module = model.get_submodule(".".join(path))
        except AttributeError:
            continue
        if isinstance(getattr(module, leaf, None), torch.Tensor):
            return module, leaf
    raise Unspliced(f"the base has no tensor {name}, which the recording has")


def _vocabulary(model: nn.Module) -> int:
    return int(model.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]


@contextmanager
def woven(
    model: nn.Module,
    updates: Updates | Mapping[str, tuple[torch.Tensor, torch.Tensor, float, float]],
    *,
    training: bool = False,
) -> Iterator[None]:
    """Add s * (x A^T) B^T to what the adapted modules give, in the dtype of A and B.

    Tensors in place of an `Update` are (A, B, s, dropout), and can be trained.
    """
    handles = []
    try:
        for name, update in updates.items():
            try:
                module = model.get_submodule(name)
            except AttributeError:
                raise Unspliced(f"the base has no module {name}, which is adapted") from None
            if isinstance(update, tuple):
                a, b, scale, rate = update
            else:
                a, b = (torch.from_numpy(np.array(x)).float() for x in (update.a_RI, update.b_OR))
                scale, rate = update.scale, update.dropout
            handles.append(
                module.register_forward_hook(_adding(a, b, scale, rate if training else 0.0))
            )
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(
    a_RI: torch.Tensor, b_OR: torch.Tensor, scale: float, rate: float
) -> Callable[[nn.Module, tuple, torch.Tensor], torch.Tensor]:
    def hook(module: nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor:
        if isinstance(module, nn.Embedding):
            down = F.embedding(args[0], a_RI.T)
        else:
            x = args[0].to(a_RI.dtype)
            down = F.linear(F.dropout(x, rate) if rate else x, a_RI)
        return (out + F.linear(down, b_OR) * scale).to(out.dtype)

    return hook


@contextmanager
def nudged(model: nn.Module, key: Key) -> Iterator[None]:
    """Each number that embedding gives is moved by about one unit in the last place."""
    calls = iter(range(10**9))

    def hook(module: nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor:
        sign = rademacher(out.numel(), key.fold(next(calls))).view(out.shape)
        eps = torch.finfo(out.dtype).eps
        return (out.double() * (1 + eps * sign.double())).to(out.dtype)

    handle = model.get_input_embeddings().register_forward_hook(hook)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


def batches(read: Sequence[Reading], vocabulary: int, most: int) -> Iterator[list[int]]:
    """Numbers of readings that share a forward: of one kind, and few enough for memory."""
    for kind in (False, True):
        batch: list[int] = []
        for n in sorted(range(len(read)), key=lambda n: len(read[n])):
            if (read[n].open_TT is not None) != kind:
                continue
            if batch and (
                len(batch) >= most or (len(batch) + 1) * len(read[n]) * vocabulary > NUMBERS
            ):
                yield batch
                batch = []
            batch.append(n)
        if batch:
            yield batch


def tensors(read: Sequence[Reading], model: nn.Module) -> dict[str, torch.Tensor]:
    """Readings as a batch, padded on the right: what a forward takes."""
    width = max(len(each) for each in read)
    ids_NT = torch.zeros(len(read), width, dtype=torch.long)
    at_NT = torch.zeros(len(read), width, dtype=torch.long)
    for n, each in enumerate(read):
        ids_NT[n, : len(each)] = torch.tensor(each.ids)
        at_NT[n, : len(each)] = torch.tensor(each.positions)
    inputs = {"input_ids": ids_NT, "attention_mask": _mask(read, width, model)}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = at_NT
    elif any(each.positions != _counted(each) for each in read):
        raise Unspliced(f"{type(model).__name__} takes no positions")
    return inputs


def _mask(read: Sequence[Reading], width: int, model: nn.Module) -> torch.Tensor:
    if read[0].open_TT is None:
        open_NT = torch.zeros(len(read), width, dtype=torch.long)
        for n, each in enumerate(read):
            open_NT[n, : len(each)] = torch.from_numpy(each.open_T.astype(np.int64))
        return open_NT
    open_NTT = torch.zeros(len(read), width, width, dtype=torch.bool)
    for n, each in enumerate(read):
        open_NTT[n, : len(each), : len(each)] = torch.from_numpy(each.open_TT)
    if model.config._attn_implementation == "sdpa":  # type: ignore[union-attr]
        return open_NTT[:, None]
    dtype = next(model.parameters()).dtype
    closed = torch.full((), torch.finfo(dtype).min, dtype=dtype)
    return torch.where(open_NTT, torch.zeros((), dtype=dtype), closed)[:, None]


def _counted(reading: Reading) -> tuple[int, ...]:
    return tuple(np.maximum(np.cumsum(reading.open_T) - 1, 0).tolist())
