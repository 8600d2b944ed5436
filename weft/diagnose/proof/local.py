"""Where an error is made: every block of B is given the hidden states that A's has.

Errors add up from block to block; what a block itself does otherwise shows when both sides' are
given the same. Reference, section 6: u_l = |f_l^B(h^A) - f_l^A(h^A)| / |f_l^A(h^A)|.

Shapes: T positions, D hidden size, V vocabulary, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from weft.core.keys import Key
from weft.diagnose.finding import Cause
from weft.diagnose.proof.feeding import Reading, readings
from weft.diagnose.proof.floors import DRAWS, QUANTILE
from weft.diagnose.proof.forward import Engine, blocks, tensors, woven
from weft.diagnose.proof.replica import Moment, Replica
from weft.model.noise import rademacher

ROWS = 3
"""Prompts that are looked at, at most."""

RESOLVED = 1e-6
"""Relative errors below this are rounding in float32."""


@dataclass(frozen=True)
class Made:
    """The first part of a model whose own error is more than noise."""

    place: str  # the module, as transformers names it
    value: float  # its own error, relative
    floor: float

    @property
    def words(self) -> str:
        """As a sentence."""
        return (
            f"given A's hidden states, B first computes otherwise in {self.place} "
            f"(own error {self.value:.2g}, floor {self.floor:.2g}, {self.value / self.floor:.0f}x)"
        )


def placed(cause: Cause, its: Made) -> Cause:
    """A difference of what is computed, at the place that makes it."""
    words = f"{cause.finding.words}; {its.words}"
    return replace(cause, finding=replace(cause.finding, place=its.place, words=words))


@dataclass(frozen=True, eq=False)
class Trace:
    """What each part gives: the embedding, L blocks, the head."""

    outs: tuple[torch.Tensor, ...]  # [T, D] each, of the head [T, V]

    @property
    def fed(self) -> tuple[torch.Tensor, ...]:
        """What blocks and head were given."""
        return self.outs[:-1]


def made(engine: Engine, a: Replica, b: Replica, key: Key) -> Made | None:
    """Where B's error is made; None if nowhere, or the sides' prompts are of other lengths."""
    errors, nulls = [], []
    names: Sequence[str] = ()
    pairs = zip(a.rows, b.rows, strict=True)
    fit = [(x, y) for x, y in pairs if len(x.ids) == len(y.ids)][:ROWS]
    for number, (x, y) in enumerate(fit):
        mine, its = a.moments[x.moment], b.moments[y.moment]
        read = [readings(row, each.context)[0] for row, each in ((x, a), (y, b))]
        own = trace(engine, mine, read[0])
        other = trace(engine, its, read[1], own.fed)
        names = parts(engine.model(mine.base))
        if [each.shape for each in own.outs] != [each.shape for each in other.outs]:
            return None
        errors.append(_apart(own, other, read[0]))
        draws = [
            trace(engine, mine, read[0], own.fed, key.fold(number, draw)) for draw in range(DRAWS)
        ]
        nulls.append([_apart(own, each, read[0]) for each in draws])
    if not errors:
        return None
    error_L = np.mean(errors, axis=0)
    floor_L = np.maximum(np.quantile(np.mean(nulls, axis=0), QUANTILE, axis=0), RESOLVED)
    over = np.flatnonzero(error_L > 3 * floor_L)
    if not len(over):
        return None
    at = int(over[0])
    return Made(names[at], float(error_L[at]), float(floor_L[at]))


def parts(model: nn.Module) -> list[str]:
    """Names of the embedding, the blocks, the head."""
    names = {id(module): name for name, module in model.named_modules()}
    embedding = names.get(id(model.get_input_embeddings()), "embedding")  # type: ignore[operator]
    head = names.get(id(model.get_output_embeddings()), "head")  # type: ignore[operator]
    return [embedding, *(names[id(block)] for block in blocks(model)), head]


@torch.no_grad()
def trace(
    engine: Engine,
    moment: Moment,
    reading: Reading,
    fed: Sequence[torch.Tensor] = (),
    nudge: Key | None = None,
) -> Trace:
    """One forward; `fed` is given to blocks and head in place of what comes before them.

    `nudge` moves every number of it by about one unit in the last place.
    """
    model = engine.model(moment.base)
    every = blocks(model)
    seen: dict[int, torch.Tensor] = {}

    def given(number: int, own: torch.Tensor) -> torch.Tensor:
        """What stands at the input of part `number`, counted from the first block."""
        if not fed:
            return own
        x = fed[number].to(own.dtype)[None]
        if nudge is not None:
            sign = rademacher(x.numel(), nudge.fold(number)).view(x.shape)
            x = (x.double() * (1 + torch.finfo(x.dtype).eps * sign.double())).to(x.dtype)
        return x

    def before(number: int) -> Any:
        def hook(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
            own = args[0] if args else kwargs["hidden_states"]
            if number == 0:
                seen[0] = own[0]
            x = given(number, own)
            return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

        return hook

    def after(number: int) -> Any:
        def hook(block: nn.Module, args: tuple, out: Any) -> Any:
            own = out[0] if isinstance(out, tuple) else out
            seen[number + 1] = own[0]
            if number + 1 < len(every):
                return out
            x = given(number + 1, own)
            return (x, *out[1:]) if isinstance(out, tuple) else x

        return hook

    with ExitStack() as stack:
        stack.enter_context(woven(model, moment.adapter))
        for number, block in enumerate(every):
            pre = block.register_forward_pre_hook(before(number), with_kwargs=True)
            stack.callback(pre.remove)
            stack.callback(block.register_forward_hook(after(number)).remove)
        logits_TV = model(**tensors([reading], model), use_cache=False).logits[0]
    engine.forwards += 1
    outs = (*(seen[n] for n in sorted(seen)), logits_TV.float().log_softmax(-1))
    return Trace(outs)


def _apart(own: Trace, other: Trace, reading: Reading) -> list[float]:
    """Relative L2 of each part's output, at positions that are read."""
    at = torch.from_numpy(reading.open_T)
    found = []
    for x, y in zip(own.outs, other.outs, strict=True):
        size = float(x[at].double().norm())
        found.append(float((y[at].double() - x[at].double()).norm()) / max(size, 1e-30))
    return found
