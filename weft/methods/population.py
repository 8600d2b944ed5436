"""A population of adapters around a centre, as a value from which any member can be made.

    member i = centre + noise * sign_i * eps_i        eps_i standard normal, drawn from a key

Nothing else is kept of a member: wherever the centre, the noise and the key are, the same members
are, bit for bit. Member number `size` is the centre itself.

Shapes: N members, n of them at a time, P parameters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from weft.core.keys import Key
from weft.model.noise import normal

MOST_AHEAD = 16
"""Draws that are in memory at once."""


@dataclass(frozen=True, eq=False)
class Population:
    """`size` members; `noise_P` is the standard deviation of each parameter, 0 where it stays.

    With `antithetic` members 2k and 2k + 1 are a pair: the same draw, added and subtracted.
    """

    centre_P: torch.Tensor
    noise_P: torch.Tensor
    key: Key
    size: int
    antithetic: bool

    def members(self, numbers: Sequence[int]) -> torch.Tensor:
        """The adapters [n, P] with these numbers."""
        members_nP = self.centre_P.repeat(len(numbers), 1)
        for member_P, number in zip(members_nP, numbers, strict=True):
            if number < self.size:
                draw, sign = self._draw_of(number)
                member_P.addcmul_(self.noise_P, self._eps(draw), value=sign)
        return members_nP

    def combine(self, weight_N: np.ndarray) -> torch.Tensor:
        """The mean over members of weight * sign * eps, [P]: in units of the noise.

        Summed in fp32 in the order of the draws, so the result is the same wherever it is made.
        """
        total_P = torch.zeros_like(self.centre_P)
        weights = {draw: weight for draw, weight in self._weights(weight_N) if weight}
        for weight, eps_P in zip(weights.values(), _ahead(self._eps, weights), strict=True):
            total_P.add_(eps_P, alpha=weight)
        return torch.where(self.noise_P > 0, total_P / self.size, 0.0)

    def _weights(self, weight_N: np.ndarray) -> Iterator[tuple[int, float]]:
        """Each draw with the sum of its members' signed weights."""
        total: dict[int, float] = {}
        for number, weight in enumerate(weight_N.tolist()):
            draw, sign = self._draw_of(number)
            total[draw] = total.get(draw, 0.0) + sign * weight
        yield from total.items()

    def _draw_of(self, number: int) -> tuple[int, float]:
        """The draw that a member is made of, and its sign."""
        if not self.antithetic:
            return number, 1.0
        return number // 2, -1.0 if number % 2 else 1.0

    def _eps(self, draw: int) -> torch.Tensor:
        """One key for all parameters: no two tensors share their noise."""
        return normal(len(self.centre_P), self.key.fold("draw", draw)).to(self.centre_P.device)


def _ahead(make: Callable[[int], torch.Tensor], of: Iterable[int]) -> Iterator[torch.Tensor]:
    """What `make` gives of each, in order, while threads are at the next ones: draws take long."""
    threads = min(torch.get_num_threads(), MOST_AHEAD)
    made: deque[Future[torch.Tensor]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for each in of:
            made.append(pool.submit(make, each))
            if len(made) > threads:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()
