"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds by name: `with watch("forward"): ...` adds to `watch.seconds["forward"]`.

    A nested name counts in itself and in the outer one.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time in the block to `name`, also when it raises."""
        start = self._clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - start


class RateMeter:
    """Amount per second, such as tokens: over the last `window` measurements, and overall."""

    def __init__(self, window: int = 20) -> None:
        self.amount = 0.0
        self.seconds = 0.0
        self._recent: deque[tuple[float, float]] = deque(maxlen=window)

    def add(self, amount: float, seconds: float) -> None:
        """Count what was done in `seconds`."""
        self.amount += amount
        self.seconds += seconds
        self._recent.append((amount, seconds))

    @property
    def recent(self) -> float:
        """Rate over the last measurements; 0 before the first."""
        seconds = sum(seconds for _, seconds in self._recent)
        return sum(amount for amount, _ in self._recent) / seconds if seconds else 0.0

    @property
    def overall(self) -> float:
        """Rate over everything; 0 before the first measurement."""
        return self.amount / self.seconds if self.seconds else 0.0
