"""Proof that a server uses adapters: two large ones and the base must say three different things.

A server can load an adapter, list it, and answer with the bare base, or with one adapter for all.
Both look like a population whose members happen to be alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from weft.core.errors import EngineError
from weft.core.keys import Key
from weft.model.adapter import Adapter, Layout
from weft.model.decoding import Decoding
from weft.model.noise import normal

SIZES = (2.0, 30.0, 500.0)
"""How large the answer of each adapted layer is to a normal input; the first usually does."""

DECODING = Decoding(max_tokens=8, ignore_eos=True)

Said = tuple[int, ...]


def loud_pair(layout: Layout, size: float) -> tuple[Adapter, Adapter]:
    """Two random adapters: each layer answers an input of size 1 with about `size`."""
    return (_loud(layout, size, 0), _loud(layout, size, 1))


def _loud(layout: Layout, size: float, number: int) -> Adapter:
    flat = normal(layout.size, Key.of(0).fold("canary", number)).clone()
    for name, (a_rI, b_Or) in layout.factors(flat).items():
        a_rI /= math.sqrt(a_rI.shape[1])
        b_Or *= size / (layout.by_name[name].scale * math.sqrt(b_Or.shape[1]))
    assert torch.isfinite(flat).all()
    return Adapter(layout, flat)


def differ(base: Said, said: Sequence[Said]) -> bool:
    """Whether all of them said something of their own."""
    return len({base, *said}) == 1 + len(said)


def silent(url: str, base: Said, said: Sequence[Said]) -> EngineError:
    """What to tell of a server whose adapters do not differ."""
    if base in said:
        return EngineError(
            f"the server at {url} loads adapters and does not use them: with a very large one, "
            "asked for by its name, it says what the bare base says",
            hint="a silent fallback to the base: is LoRA on, and is this the model that the "
            "adapters are for? Nothing was computed with it",
        )
    return EngineError(
        f"the server at {url} mixes adapters up: two very large, different ones say the same",
        hint="it answers for all with one of them; restart it, or use another version. Nothing "
        "was computed with it",
    )
