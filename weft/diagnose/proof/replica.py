"""A side of a diagnosis as a value that can be run again, stage by stage.

A replica holds what a recording says of each stage: prompts, padding, positions, base, adapter, how
context is fed when decoding, sampler, stop rule, and for training its batches, rates and rules. A
swap makes a replica from two others (see weft.diagnose.proof.swaps); nothing here computes.

Shapes: R rank of an adapter, I inputs, O outputs, B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from weft.diagnose.proof.settings import Setup

DECODED = 8
"""Positions of A's completions at which distributions are compared, at most."""


@dataclass(frozen=True, eq=False)
class Update:
    """What an adapter adds at one module: scale * B @ A."""

    a_RI: np.ndarray
    b_OR: np.ndarray
    scale: float
    dropout: float = 0.0
    trainable: bool = True

    @property
    def rank(self) -> int:
        """R."""
        return int(self.a_RI.shape[0])

    @property
    def delta_OI(self) -> np.ndarray:
        """It as a whole, in float64."""
        return self.scale * (self.b_OR.astype(np.float64) @ self.a_RI.astype(np.float64))

    def plus(self, other: Update) -> Update:
        """Both together."""
        if self.a_RI is other.a_RI and self.b_OR is other.b_OR:
            return replace(self, scale=self.scale + other.scale)
        a_RI = np.concatenate([self.a_RI, other.a_RI])
        b_OR = np.concatenate([self.scale * self.b_OR, other.scale * other.b_OR], axis=1)
        return replace(self, a_RI=a_RI, b_OR=b_OR, scale=1.0)


Updates = Mapping[str, Update]
"""By module, as transformers names it."""


@dataclass(frozen=True, eq=False)
class BaseValue:
    """A base: where it is loaded from, and its tensors that are not as they are there."""

    load: str | None
    dtype: str = "float32"
    attention: str = ""
    changed: Mapping[str, np.ndarray] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)  # of all tensors, as recorded
    merged: Updates = field(default_factory=dict)  # that are in its weights, rounded to their dtype
    tied: bool | None = None  # whether its head is its embedding; None: as in the file


Rule = Literal["counted", "index"]
"""Positions count real tokens from 0, or are columns of the padded batch."""


@dataclass(frozen=True)
class Row:
    """One prompt, as it was fed."""

    prompt: tuple[int, ...]  # without padding
    left: int = 0  # padding before it
    pad: int = 0
    attended: bool = False  # its padding is open to attention
    rule: Rule | int = "counted"  # an int: the position of its first real token
    tokens: tuple[int, ...] = ()  # that were chosen after it
    ended: str = "unknown"  # why they ended: eos, length, stop or unknown
    held: tuple[int, ...] = ()  # positions of all columns, where no rule gives them
    moment: int = 0  # whose weights it was read with, of those that its replica has

    @property
    def ids(self) -> tuple[int, ...]:
        """With padding."""
        return (self.pad,) * self.left + self.prompt

    @property
    def first(self) -> int:
        """The position of the first real token."""
        if isinstance(self.rule, int):
            return self.rule
        return self.left if self.rule == "index" else 0

    @property
    def positions(self) -> tuple[int, ...]:
        """Of all columns; those of padding count up to the first real token where they can."""
        if self.held:
            return self.held
        before = (max(0, self.first - self.left + i) for i in range(self.left))
        return (*before, *range(self.first, self.first + len(self.prompt)))


Origin = Literal["on", "counted", "index", "fresh"]
"""The position of a new token goes on from the prompt's last one, counts real tokens, is its
column in the padded batch, or starts anew with what is visible."""


@dataclass(frozen=True)
class Context:
    """What each decoding step sees of the text before it, by step from the first.

    `visible`: how many of the newest positions, None for all. `shift`: what is added to the
    position of the new token. Beyond its end a tuple goes on as it ends.
    """

    visible: tuple[int | None, ...] = ()
    shift: tuple[int, ...] = ()
    origin: Origin = "on"
    masked: bool = True  # padding that the prompt hid stays hidden

    @property
    def plain(self) -> bool:
        """Whether every step sees all that the prompt saw, and all that came after it."""
        return all(v is None for v in self.visible) and self.masked

    def sees(self, step: int) -> int | None:
        """How many positions step `step` (from 1) sees, itself among them; None: all."""
        if not self.visible:
            return None
        known = self.visible[min(step, len(self.visible)) - 1]
        beyond = step - len(self.visible)
        if known is None or beyond <= 0 or len(self.visible) < 2:
            return known
        before = self.visible[-2]
        return known if before is None else known + beyond * (known - before)

    def position(self, row: Row, step: int) -> int:
        """Where the token of step `step` stands."""
        at = natural(self.origin, row, step, self.sees(step))
        return at + (self.shift[min(step, len(self.shift)) - 1] if self.shift else 0)


def natural(origin: Origin, row: Row, step: int, seen: int | None) -> int:
    """The position of a new token by a rule, when `seen` positions are visible (None: all)."""
    match origin:
        case "counted":
            return len(row.prompt) - 1 + step
        case "index":
            return len(row.ids) - 1 + step
        case "fresh":
            return (len(row.ids) + step if seen is None else seen) - 1
        case "on":
            return row.positions[-1] + step


@dataclass(frozen=True)
class Sampler:
    """How a token is chosen from a distribution."""

    greedy: bool = True
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    penalty: float = 1.0


@dataclass(frozen=True)
class Stop:
    """When a completion ends."""

    max_tokens: int | None = None
    eos: tuple[int, ...] = ()
    strings: tuple[str, ...] = ()


Normaliser = Literal["mean", "mean-each", "sum", "tokens"]
"""What a micro-batch adds to the loss of its step, from the sum and count of its tokens' losses:
the mean, divided by the number of micro-batches; the mean; the sum; the sum, divided by the count
of the whole step."""


@dataclass(frozen=True, eq=False)
class Micro:
    """What one training pass was given."""

    ids_BT: np.ndarray
    labels_BT: np.ndarray
    mask_BT: np.ndarray | None = None
    positions_BT: np.ndarray | None = None
    loss: float | None = None  # as recorded, of what backward was called on


@dataclass(frozen=True, eq=False)
class Lesson:
    """One training step."""

    micros: tuple[Micro, ...]
    lr: float
    loss: float | None = None


@dataclass(frozen=True, eq=False)
class Turn:
    """The adapter went into the weights, or began anew, after a step."""

    what: Literal["merge", "reset", "commit"]
    after: int
    fresh: Updates = field(default_factory=dict)  # the adapter after it, where it is known


@dataclass(frozen=True)
class Optimiser:
    """A rule of torch.optim and its settings."""

    name: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    clip: float | None = None


@dataclass(frozen=True, eq=False)
class Course:
    """Training: where it starts, what it is taught, and by which rules."""

    start: Updates
    lessons: tuple[Lesson, ...]
    normaliser: Normaliser = "mean"
    factor: float = 1.0  # on the loss besides
    optimiser: Optimiser = Optimiser()
    trains_adapter: bool = True
    trains_base: bool = False
    turns: tuple[Turn, ...] = ()
    keeps: bool = False  # the optimiser remembers across turns
    reached: Mapping[int, Updates] = field(default_factory=dict)  # the adapter after a step


@dataclass(frozen=True, eq=False)
class Moment:
    """The weights between two changes of them."""

    base: BaseValue
    adapter: Updates = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Replica:
    """One side, or a mixture of two. Row by row, both sides' rows are of moments of one number."""

    name: str
    base: BaseValue
    adapter: Updates = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    context: Context = Context()
    sampler: Sampler | None = None
    stop: Stop | None = None
    seed: int | None = None
    dropping: bool = False  # dropout is at work when prompts are read
    course: Course | None = None
    setup: Setup | None = None  # of a run of Weft
    later: tuple[Moment, ...] = ()  # `base` and `adapter` are those of the first moment

    @property
    def moments(self) -> tuple[Moment, ...]:
        """All of them, by number."""
        return (Moment(self.base, self.adapter), *self.later)

    def with_(self, **changes: Any) -> Replica:
        """A copy with other values."""
        return replace(self, **changes)

    def at_each(self, change: Callable[[int, Moment], Moment]) -> Replica:
        """With other weights at its moments, or itself if they are the same objects."""
        before = self.moments
        after = [change(number, each) for number, each in enumerate(before)]
        same = (
            x.base is y.base and x.adapter is y.adapter for x, y in zip(before, after, strict=True)
        )
        if all(same):
            return self
        first, *later = after
        return replace(self, base=first.base, adapter=first.adapter, later=tuple(later))
