"""Ways in which scripts draw a token with the numbers of a generator, to draw it again.

A way is known by what it gives: the tokens that a side drew, from what it drew them from.
Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from weft.core.keys import log_exponential
from weft.diagnose.sides.evidence import Evidence
from weft.model.decoding import request_keys
from weft.model.noise import legacy_numbers, new_numbers, torch_numbers
from weft.runs.evidence import Generation

Start = int | np.ndarray
"""A seed, or the state of PyTorch's generator."""

Prompts = Sequence[tuple[int, ...]]

Drawer = Callable[[torch.Tensor, Prompts, int], torch.Tensor]
"""token_B of p_BV, the prompts of the rows, and the step from 0; calls go on where others ended."""


@dataclass(frozen=True, eq=False)
class Numbers:
    """A way of drawing, and where its numbers begin."""

    library: str
    name: str
    start: Start

    def begin(self) -> Drawer:
        """From the first number on."""
        return WAYS[self.library][self.name](self.start)

    def moved(self, start: Start) -> Numbers:
        """The same way from elsewhere."""
        return Numbers(self.library, self.name, start)


def candidates(side: Evidence) -> Iterator[Numbers]:
    """Every way in which a side may have drawn its first completions, from what it recorded."""
    for library, start in starts(side).items():
        for name in WAYS.get(library, ()):
            yield Numbers(library, name, start)


def starts(side: Evidence) -> dict[str, Start]:
    """By library, where numbers began: the state before the first draw, else the last seed."""
    found: dict[str, Start] = {}
    for event in side.events:
        if isinstance(event, Generation):
            if event.state is not None:
                found["torch"] = side.array(event.state)
            break
        if event.kind == "seeded":
            found[event.library] = event.seed
    for key in ("generation.seed", "seed"):
        value = side.settings[key].value if key in side.settings else None
        if isinstance(value, int):
            found.setdefault("weft", value)
    return found


def _weights(numbers: Any, p_BV: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(p_BV.float(), 1, generator=numbers)[:, 0]


def _categorical(numbers: Any, p_BV: torch.Tensor) -> torch.Tensor:
    """As `torch.distributions.Categorical` samples."""
    return torch.multinomial(p_BV.float(), 1, replacement=True, generator=numbers)[:, 0]


def _gumbel(numbers: Any, p_BV: torch.Tensor) -> torch.Tensor:
    """The largest of log p + Gumbel noise of uniform numbers."""
    u_BV = torch.rand(p_BV.shape, generator=numbers).double().clamp(min=1e-30)
    return (p_BV.log() - (-u_BV.log()).log()).argmax(-1)


def _inverse(numbers: Any, p_BV: torch.Tensor) -> torch.Tensor:
    """Where the cumulative distribution passes a uniform number."""
    return _passes(p_BV, torch.rand((len(p_BV), 1), generator=numbers).double())


def _numpy_inverse(numbers: Any, p_BV: torch.Tensor) -> torch.Tensor:
    return _passes(p_BV, torch.from_numpy(numbers.random((len(p_BV), 1))))


def _numpy_gumbel(numbers: Any, p_BV: torch.Tensor) -> torch.Tensor:
    return (p_BV.log() + torch.from_numpy(numbers.gumbel(size=p_BV.shape))).argmax(-1)


def _numpy_counts(numbers: Any, p_BV: torch.Tensor) -> torch.Tensor:
    """As one trial of a multinomial distribution."""
    drawn = [numbers.multinomial(1, p_V / p_V.sum()).argmax() for p_V in p_BV.numpy()]
    return torch.tensor(drawn)


def _passes(p_BV: torch.Tensor, u_B1: torch.Tensor) -> torch.Tensor:
    cdf_BV = p_BV.cumsum(-1)
    return (cdf_BV / cdf_BV[:, -1:] <= u_B1).sum(-1).clamp(max=p_BV.shape[-1] - 1)


Choice = Callable[[Any, torch.Tensor], torch.Tensor]


def _plain(make: Callable[[Any], Any], choose: Choice) -> Callable[[Any], Drawer]:
    """Over the tokens in order."""

    def begin(start: Any) -> Drawer:
        numbers = make(start)
        return lambda p_BV, prompts, step: choose(numbers, p_BV)

    return begin


def _ranked(make: Callable[[Any], Any], choose: Choice, kept: bool) -> Callable[[Any], Drawer]:
    """Over the tokens by rank; `kept`: over those alone that filters leave."""

    def begin(start: Any) -> Drawer:
        numbers = make(start)

        def draw(p_BV: torch.Tensor, prompts: Prompts, step: int) -> torch.Tensor:
            ranked_BV, token_BV = p_BV.sort(-1, descending=True)
            most = int((ranked_BV > 0).sum(-1).max()) if kept else ranked_BV.shape[-1]
            at_B = choose(numbers, ranked_BV[:, :most])
            return token_BV.gather(-1, at_B[:, None])[:, 0]

        return draw

    return begin


def _three(
    make: Callable[[Any], Any], choices: Mapping[str, Choice]
) -> Mapping[str, Callable[[Any], Drawer]]:
    found: dict[str, Callable[[Any], Drawer]] = {}
    for name, choose in choices.items():
        found[name] = _plain(make, choose)
        found[f"{name} by rank"] = _ranked(make, choose, False)
        found[f"{name} of the kept by rank"] = _ranked(make, choose, True)
    return found


def _keyed(seed: int) -> Drawer:
    """Weft's own noise: of the seed, the prompt, which of its copies it is, and the position."""
    given: dict[tuple[int, ...], int] = {}
    keys: list[Any] = []

    def draw(p_BV: torch.Tensor, prompts: Prompts, step: int) -> torch.Tensor:
        if step == 0:
            copies = []
            for prompt in prompts:
                copies.append(given.get(prompt, 0))
                given[prompt] = copies[-1] + 1
            keys[:] = request_keys(seed, [np.array(each) for each in prompts], copies)
        noise_BV = np.stack([log_exponential(p_BV.shape[-1], key, step) for key in keys])
        return (p_BV.log() - torch.from_numpy(noise_BV)).argmax(-1)

    return draw


def _mlx(seed: int) -> Drawer:
    """`mx.random.categorical` with the global key, which every draw splits."""
    import mlx.core as mx

    key = mx.random.key(seed)

    def draw(p_BV: torch.Tensor, prompts: Prompts, step: int) -> torch.Tensor:
        nonlocal key
        key, mine = mx.random.split(key)
        log_BV = mx.array(p_BV.log().float().numpy())
        return torch.tensor(np.array(mx.random.categorical(log_BV, key=mine)).astype(np.int64))

    return draw


WAYS: Mapping[str, Mapping[str, Callable[[Any], Drawer]]] = {
    "torch": _three(
        torch_numbers,
        {
            "multinomial": _weights,
            "categorical": _categorical,
            "gumbel": _gumbel,
            "inverse": _inverse,
        },
    ),
    "numpy": {
        **_three(
            legacy_numbers,
            {"inverse": _numpy_inverse, "gumbel": _numpy_gumbel, "multinomial": _numpy_counts},
        ),
        **{
            f"{name}, new": way
            for name, way in _three(
                new_numbers,
                {"inverse": _numpy_inverse, "gumbel": _numpy_gumbel, "multinomial": _numpy_counts},
            ).items()
        },
    },
    "python": _three(lambda seed: legacy_numbers(seed, python=True), {"inverse": _numpy_inverse}),
    "weft": {"keyed": _keyed},
    "mlx": {"categorical": _mlx} if find_spec("mlx") else {},
}
"""Of each library. By rank: over what a sort gave; of the kept: over what a top-k gave."""
