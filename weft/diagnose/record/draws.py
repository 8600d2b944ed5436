"""How tokens are chosen: calls that pick from a distribution, and what that distribution was.

Only calls over as many columns as the model has tokens are looked at, and draws from what a sort
or a top-k of such a call left. The functions do what they did; their generators are not touched.

Shapes: N rows, K columns, V vocabulary.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from weft.diagnose.record.patching import Undo, replace, together, when_imported
from weft.diagnose.record.recorder import PassSeen, Recorder
from weft.runs.evidence import Draw

if TYPE_CHECKING:
    import torch

MOST = 512
"""Tokens that a temperature is fitted to, the likeliest first."""


SLACK = 1e-5
"""By how much a script's own sums of float32 probabilities, and a fit to them, may be off."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Tokens were chosen, one a row."""

    how: Literal["argmax", "draw"]
    tokens: torch.Tensor  # [N]
    weights: torch.Tensor | None  # [N, K] what was drawn from; None for an argmax
    ranks: torch.Tensor | None  # [N, K] tokens of the columns, where they are not all in order


@dataclass(frozen=True)
class Fitted:
    """What a distribution is, compared with the logits that it was made of."""

    temperature: float | None = None
    kept: int | None = None
    top_p: tuple[float, float] | None = None  # between which a nucleus of these tokens has its p
    min_p: tuple[float, float] | None = None


def fit(logits: torch.Tensor, weights: torch.Tensor) -> Fitted:
    """Temperature and filters that make `weights` [V], not normalised, out of `logits` [V].

    The temperature is the slope of a line through (logit, log probability) of the tokens that are
    left, fitted again without those that a penalty moved off it.
    """
    import torch

    tiny = torch.finfo(weights.dtype).tiny if weights.is_floating_point() else 0.0
    p = weights.double() / weights.double().sum()
    z = logits.double()
    left = p > 0
    top = torch.topk(p, min(MOST, int(left.sum()))).indices
    top = top[weights[top].double() > tiny]
    slope, offset = _line(z[top], p[top].log())
    if slope is None or slope <= 0:
        return Fitted(kept=int(left.sum()))
    # what rounds to zero may have been left all the same, if nothing else is missing
    rounds = slope * z + offset < math.log(max(tiny, 1e-300) * 10)
    if not bool((~left & ~rounds).any()):
        left = torch.ones_like(left)
    return Fitted(1 / slope, int(left.sum()), *_edges(torch.softmax(slope * z, -1), left))


def _line(x: torch.Tensor, y: torch.Tensor) -> tuple[float | None, float]:
    for _ in range(2):
        if len(x) < 2:
            return None, 0.0
        dx = x - x.mean()
        spread = float((dx * dx).sum())
        if spread == 0:
            return None, 0.0
        slope = float((dx * (y - y.mean())).sum()) / spread
        offset = float(y.mean()) - slope * float(x.mean())
        off = (y - slope * x - offset).abs()
        near = off <= 3 * float(off.median()) + 1e-6
        if bool(near.all()):
            break
        x, y = x[near], y[near]
    return slope, offset


def _edges(
    q: torch.Tensor, kept: torch.Tensor
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Between which values p of a nucleus and min-p lie, if `kept` are the likeliest of `q`."""
    if bool(kept.all()):
        return None, None
    least, most = float(q[kept].min()), float(q[~kept].max())
    if least < most:
        return None, None
    mass, top = float(q[kept].sum()), float(q.max())
    return (mass - least - SLACK, mass + SLACK), (most / top - SLACK, least / top + SLACK)


def draw_of(
    row: int, step: int, token: int, chosen: Chosen | None, logits: torch.Tensor | None, fits: bool
) -> tuple[Draw, Fitted | None]:
    """How one token was chosen, given the logits [N, V] of its pass.

    A temperature is fitted if `fits`. Without `chosen` nobody saw how.
    """
    probability, fitted = None, None
    if logits is not None:
        probability = float(logits[row, token].sub(logits[row].logsumexp(-1)).exp())
        if fits and chosen is not None and chosen.weights is not None:
            weights = chosen.weights[row]
            if chosen.ranks is not None:
                weights = weights.new_zeros(logits.shape[-1]).scatter(0, chosen.ranks[row], weights)
            fitted = fit(logits[row], weights)
    made = Draw(
        row=row,
        step=step,
        token=token,
        how="unknown" if chosen is None else chosen.how,
        temperature=fitted.temperature if fitted else None,
        kept=fitted.kept if fitted else None,
        probability=probability,
    )
    return made, fitted


def filters(fitted: Sequence[Fitted], size: int) -> dict[str, Any]:
    """The one filter that explains every draw of a generation, as far as it can be told.

    Where a nucleus and a min-p both do, it is the one that needs fewer decimals: people give those.
    """
    several = [each for each in fitted if each.kept != 1]  # every filter may leave one
    if not several or any(each.kept is None for each in several):
        return {}
    counts = {each.kept for each in several}
    if counts == {size}:
        return {"top_k": 0, "top_p": 1.0}
    if len(counts) == 1 and len(several) > 1:
        return {"top_k": counts.pop()}
    cut = [each for each in several if each.kept != size]
    spans = {name: _shared(getattr(each, name) for each in cut) for name in ("top_p", "min_p")}
    found = {name: shortest(*span) for name, span in spans.items() if span is not None}
    fewest = min((len(str(value)) for value in found.values()), default=0)
    simple = {name: value for name, value in found.items() if len(str(value)) == fewest}
    return simple if len(simple) == 1 else {}


def _shared(spans: Iterable[tuple[float, float] | None]) -> tuple[float, float] | None:
    low, high = 0.0, 1.0
    for span in spans:
        if span is None:
            return None
        low, high = max(low, span[0]), min(high, span[1])
    return (low, high) if low < high else None


def shortest(low: float, high: float) -> float:
    """The number with the fewest decimals in (low, high]."""
    for digits in range(1, 16):
        unit = 10**digits
        whole = int(high * unit + 1e-9)
        if whole / unit > low:
            return whole / unit
    return high


def install(recorder: Recorder) -> Undo:
    """Look at calls that choose; each is told as a `Chosen`."""
    watch = _Watch(recorder)
    recorder.listen(PassSeen, watch.passed)

    def imported(torch: Any) -> None:
        for name, look in watch.looks.items():
            made = replace(torch, name, _wrapping(torch, watch, look))
            with suppress(AttributeError):  # compiled scripts know functions by what they are
                torch.jit._builtins._register_builtin(getattr(torch, name), f"aten::{name}")
            undos.append(made)
            undos.append(replace(torch.Tensor, name, _wrapping(torch, watch, look)))

    undos: list[Undo] = []
    undos.append(when_imported("torch", imported))
    return together(undos)


def _wrapping(
    torch: Any, watch: _Watch, look: Callable[..., None]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def choose(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            if not torch.compiler.is_compiling() and watch.recorder.watching:
                given = args[0] if args else kwargs.get("input")
                if isinstance(given, torch.Tensor) and watch.concerns(given):
                    with watch.recorder.aside():
                        look(given, made, args[1:], kwargs)
            return made

        return choose

    return make


class _Watch(threading.local):
    """What has happened since the last pass of a thread."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.size = -1  # V of the last logits
        self.state: torch.Tensor | None = None  # of the generator, after the last pass
        self.ranks: torch.Tensor | None = None  # tokens, the likeliest first
        self.looks: dict[str, Callable[..., None]] = {
            "argmax": self.argmax,
            "max": self.largest,
            "topk": self.ranked,
            "sort": self.ranked,
            "argsort": self.ranked,
            "multinomial": self.drawn,
        }

    def passed(self, seen: PassSeen) -> None:
        import torch

        self.ranks = None
        self.size = -1 if seen.logits is None else seen.logits.shape[-1]
        self.state = torch.get_rng_state()

    def concerns(self, given: torch.Tensor) -> bool:
        """Whether a tensor can be scores of all tokens, or of those that were ranked."""
        if not given.ndim:
            return False
        columns = given.shape[-1]
        return columns == self.size or (self.ranks is not None and columns == self.ranks.shape[-1])

    def argmax(self, given: Any, made: Any, args: Any, kwargs: Any) -> None:
        if given.shape[-1] == self.size and _is_last(given, args, kwargs):
            self._picked(made)

    def largest(self, given: Any, made: Any, args: Any, kwargs: Any) -> None:
        if isinstance(made, tuple):
            self.argmax(given, made[1], args, kwargs)

    def ranked(self, given: Any, made: Any, args: Any, kwargs: Any) -> None:
        indices = made[1] if isinstance(made, tuple) else made
        if given.shape[-1] == self.size and indices.shape[-1] == 1:
            self._picked(indices)
        elif given.shape[-1] == self.size and indices.shape[:-1] == given.shape[:-1]:
            ends = given.gather(-1, indices[..., [0, -1]])  # from the least one: to be put back
            self.ranks = indices if bool((ends[..., 0] >= ends[..., 1]).all()) else None
        elif self.ranks is not None and self.ranks.shape == given.shape:  # a top-k, sorted again
            self.ranks = self.ranks.gather(-1, indices)

    def drawn(self, given: Any, made: Any, args: Any, kwargs: Any) -> None:
        ranks, size = self.ranks, given.shape[-1]
        if ranks is not None and (ranks.shape[-1] != size or ranks.shape[0] != given.shape[0]):
            ranks = None
        if made.shape[-1] != 1 or (size != self.size and ranks is None):
            return
        weights = given.detach().reshape(-1, size).clone()  # the script may go on with it
        columns = made.detach().reshape(-1, 1)
        if ranks is None or (size == self.size and not _descends(weights)):
            told = Chosen("draw", columns[:, 0], weights, None)
        else:
            ranks = (ranks[:, -1] if ranks.ndim > given.ndim else ranks).reshape(-1, size)
            told = Chosen("draw", ranks.gather(-1, columns)[:, 0], weights, ranks)
        self.recorder.tell(told)

    def _picked(self, indices: torch.Tensor) -> None:
        """An argmax; of noise if the generator has moved since the pass."""
        import torch

        tokens = indices.detach().reshape(-1)
        noisy = self.state is not None and not torch.equal(self.state, torch.get_rng_state())
        self.recorder.tell(Chosen("draw" if noisy else "argmax", tokens, None, None))


def _is_last(given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call reduces the last dimension."""
    dim = args[0] if args else kwargs.get("dim")
    if dim is None:
        return given.ndim == 1 or given.numel() == given.shape[-1]
    return isinstance(dim, int) and dim % given.ndim == given.ndim - 1


def _descends(weights: torch.Tensor) -> bool:
    """Whether columns are in order of rank: a sorted distribution, not one over all tokens."""
    return bool((weights[:, 1:] <= weights[:, :-1]).all())
