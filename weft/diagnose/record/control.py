"""A positive control of a generation: beside forwards that have the loaded adapter or have not.

Shapes: P texts, B texts of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from weft.diagnose.compare.divergence import divergence
from weft.diagnose.words import counted
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.model.base import Base
from weft.model.steppers import PackedStepper, RecomputingStepper
from weft.model.weaving import Weft
from weft.runs.evidence import Check

Logits = list[np.ndarray]
"""[V], of each text that has a step."""

Control = Literal["attached", "bare"]


@torch.inference_mode()
def control(
    model: str,
    base: Base,
    adapter: Adapter,
    prompts: Sequence[np.ndarray],
    tokens: Sequence[Sequence[int]],
    seen: Sequence[Sequence[np.ndarray]],
) -> Iterator[Check]:
    """Mean KL by step from the base with the adapter, and from the base alone.

    `tokens` and `seen` are what was said after each prompt and the logits of the first steps. Where
    the prompt was read with the adapter, later steps of `bare` go on from a cache with it in.
    """
    with_it, bare = (Weft(Bank.of({model: each}).to(base.device)) for each in (adapter, None))
    seen_by_step = [
        [logits[step] for logits in seen if step < len(logits)]
        for step in range(max(map(len, seen)))
    ]
    steps = list(map(len, seen))
    attached = _heard(base, with_it, with_it, prompts, tokens, steps)
    alone = _heard(base, bare, bare, prompts, tokens, steps)
    if _kl(attached[0], seen_by_step[0]) < _kl(alone[0], seen_by_step[0]):
        alone[1:] = _heard(base, with_it, bare, prompts, tokens, steps)[1:]
    heard: dict[Control, list[Logits]] = {"attached": attached, "bare": alone}
    for name, logits in heard.items():
        yield Check(
            name=name,
            model=model,
            unit="nats",
            values=tuple(_kl(one, other) for one, other in zip(logits, seen_by_step, strict=True)),
            words=f"{counted(len(prompts), 'text')}, a value a step",
        )


def _kl(one: Logits, other: Logits) -> float:
    return float(divergence(np.stack(one), np.stack(other)).kl.mean())


def _heard(
    base: Base,
    first: Weft,
    later: Weft,
    prompts: Sequence[np.ndarray],
    tokens: Sequence[Sequence[int]],
    steps: Sequence[int],
) -> list[Logits]:
    """By step, the logits after the same texts, of prompts read with `first`, then `later`."""
    stepper = (
        PackedStepper(base, first, prompts, max(steps))
        if base.packs
        else RecomputingStepper(base, first, prompts)
    )
    found = [[*stepper.start().cpu().numpy()]]
    stepper.weft = later
    for step in range(1, max(steps)):
        live = [step < count for count in steps]
        said = [own[step - 1] if on else 0 for own, on in zip(tokens, live, strict=True)]
        logits_BV = stepper.extend(torch.tensor(said, device=base.device), live).cpu().numpy()
        found.append([row_V for row_V, on in zip(logits_BV, live, strict=True) if on])
    return found
