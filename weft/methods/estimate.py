"""A method is a gradient estimator: the one thing in which training methods differ.

Shapes: L adapters that train together (lanes), M members of a lane, P parameters of one,
N members of a population, E prompts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from weft.core.batch import Batch
from weft.core.keys import Key
from weft.methods.calibrate import Noise
from weft.methods.population import Population
from weft.model.adapter import Layout
from weft.runs.timing import Stopwatch

AT_THETA = "loss"
PERTURBED = "loss_perturbed"
"""What a step's loss is called: that at theta itself, or the mean over points around theta."""


@dataclass(frozen=True, eq=False)
class Point:
    """Where each lane is, and what it sees there.

    `free_LP` is 1 where a parameter may move and 0 where not; None: all may. `keys` name the
    lanes' noise of this step. `noise_LP` is the size of a population's noise on each parameter,
    for a method that has one; `step` counts from 0.
    """

    theta_LP: torch.Tensor
    free_LP: torch.Tensor | None
    batches: Sequence[Batch]
    keys: Sequence[Key]
    noise_LP: torch.Tensor | None = None
    step: int = 0

    @classmethod
    def together(cls, points: Sequence[Point]) -> Point:
        """The lanes of several points side by side: of one method, at the same step."""
        theta_LP = torch.cat([point.theta_LP for point in points])
        free_LP = None
        if any(point.free_LP is not None for point in points):
            free_LP = torch.cat([point.mask_LP for point in points])
        noises = [point.noise_LP for point in points if point.noise_LP is not None]
        return cls(
            theta_LP,
            free_LP,
            [batch for point in points for batch in point.batches],
            [key for point in points for key in point.keys],
            torch.cat(noises) if noises else None,
            points[0].step,
        )

    @property
    def mask_LP(self) -> torch.Tensor:
        """`free_LP`, ones where all may move."""
        return torch.ones_like(self.theta_LP) if self.free_LP is None else self.free_LP

    def part(self, start: int, stop: int) -> Point:
        """Lanes start..stop-1 only."""
        here = slice(start, stop)
        free_LP = None if self.free_LP is None else self.free_LP[here]
        noise_LP = None if self.noise_LP is None else self.noise_LP[here]
        return Point(
            self.theta_LP[here], free_LP, self.batches[here], self.keys[here], noise_LP, self.step
        )


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimate of the gradient at theta, and what was seen on the way.

    `loss_L` is the loss in nats that `loss_name` says, or minus the reward. `stats` are further
    numbers for the step's record, one a lane; `evidence`, one a lane, is enough to replay the
    direction. A direction in units of `point.noise_LP` is that of theta divided by it.
    """

    direction_LP: torch.Tensor
    loss_L: tuple[float, ...]
    loss_name: str = AT_THETA
    stats: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    evidence: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def together(cls, parts: Sequence[Estimate]) -> Estimate:
        """The lanes of several estimates of one method side by side."""
        return cls(
            torch.cat([part.direction_LP for part in parts]),
            tuple(loss for part in parts for loss in part.loss_L),
            parts[0].loss_name,
            {
                name: tuple(x for part in parts for x in part._stat(name))
                for name in dict.fromkeys(name for part in parts for name in part.stats)
            },
            tuple(line for part in parts for line in part.evidence),
        )

    def _stat(self, name: str) -> tuple[float, ...]:
        """A number of each lane; NaN where it is not told."""
        return tuple(self.stats.get(name, (math.nan,) * len(self.loss_L)))

    def part(self, start: int, stop: int) -> Estimate:
        """That of lanes start..stop-1 only."""
        here = slice(start, stop)
        return Estimate(
            self.direction_LP[here],
            self.loss_L[here],
            self.loss_name,
            {name: values[here] for name, values in self.stats.items()},
            self.evidence[here],
        )


@dataclass(frozen=True, eq=False)
class Gradient:
    """The gradient of each lane's mean loss, with the loss it was taken of."""

    gradient_LP: torch.Tensor
    loss_L: tuple[float, ...]

    def over(self, count_L: np.ndarray) -> Gradient:
        """That of the mean, from that of the sum of so many losses.

        Divided last, in fp32: small shares of a large batch would underflow in a 16-bit base.
        """
        count_L1 = self.gradient_LP.new_tensor(count_L)[:, None]
        losses = zip(self.loss_L, count_L.tolist(), strict=True)
        return Gradient(self.gradient_LP / count_L1, tuple(loss / count for loss, count in losses))


@dataclass(frozen=True, eq=False)
class Graded:
    """What members were given for each prompt: [N, E], one row a member.

    `reward_NE` is NaN where nothing could be graded, and `failures` says why, with how often.
    `parts` are what a task tells besides the reward, such as whether the format was right.
    `texts` are the completions, and `ids` their tokens, where somebody may want to read them.
    """

    reward_NE: np.ndarray
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    texts: tuple[tuple[str, ...], ...] = ()
    ids: tuple[tuple[tuple[int, ...], ...], ...] = ()

    @classmethod
    def together(cls, parts: Sequence[Graded]) -> Graded:
        """Members that were graded apart, on the same prompts."""
        failures: Counter[str] = Counter()
        for part in parts:
            failures.update(part.failures)
        return cls(
            np.concatenate([part.reward_NE for part in parts]),
            joined(parts, axis=0),
            dict(failures),
            tuple(texts for part in parts for texts in part.texts),
            tuple(ids for part in parts for ids in part.ids),
        )

    def _part(self, name: str) -> np.ndarray:
        """A part of the rewards [N, E]; NaN where it is not told."""
        return self.parts.get(name, np.full_like(self.reward_NE, np.nan))


def joined(graded: Sequence[Graded], axis: int) -> dict[str, np.ndarray]:
    """The parts of rewards along members (0) or prompts (1); NaN where one does not have a part."""
    names = dict.fromkeys(name for each in graded for name in each.parts)
    return {
        name: np.concatenate(
            [each.parts.get(name, np.full(each.reward_NE.shape, np.nan)) for each in graded], axis
        )
        for name in names
    }


class Scorer(Protocol):
    """What a method needs of an engine."""

    @property
    def clock(self) -> Stopwatch:
        """Where a method's own time is counted; the scorer counts what it does itself."""
        ...

    @property
    def rounding(self) -> float:
        """Relative rounding of one number in the base's arithmetic."""
        ...

    def gradient(
        self, theta_LP: torch.Tensor, batches: Sequence[Batch], keys: Sequence[Key]
    ) -> Gradient:
        """Each lane's gradient on its own batch; `keys` name the lanes' dropout noise."""
        ...

    def losses(self, theta_LMP: torch.Tensor, batches: Sequence[Batch]) -> np.ndarray:
        """The mean loss [L, M], float64, of each lane's members on the lane's batch."""
        ...

    def rewards(self, lane: int, population: Population, batch: Batch, key: Key) -> Graded:
        """A population of a lane, and its centre in the last row, on a batch.

        `key` draws the completions, the same way for every member.
        """
        ...


class Estimator(Protocol):
    """The direction in which each lane's loss grows, from that lane's batch."""

    def __call__(self, config: Any, point: Point, scorer: Scorer) -> Estimate:
        """One step's estimate; `config` is the method's own."""
        ...


@dataclass(frozen=True)
class Preflight:
    """What a look before the first step found: facts for the record, and a warning if any."""

    facts: Mapping[str, Any]
    warning: str | None


@dataclass(frozen=True)
class Method:
    """A way to train, as the loop sees it."""

    estimate: Estimator
    preflight: Callable[[Any, Point, Scorer], Preflight | None] | None = None
    """Called once, before the first step."""
    replay: Callable[[Any, Point, Sequence[Mapping[str, Any]]], torch.Tensor] | None = None
    """The direction of a step again, from its evidence alone: `point.batches` may be empty."""
    calibrate: Callable[[Any, Layout, Mapping[str, float], torch.Tensor, bool], Noise] | None = None
    """The noise of a population around a start [P], from mean |W| by site; the last argument is
    whether only B moves."""
    scalars: Callable[[Any], tuple[str, int]] | None = None
    """How the numbers of its evidence are called, and how many a step has."""
