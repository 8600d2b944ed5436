"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from weft.core.errors import InputError

Kind = Literal["one-time", "repeated", "other"]

TIMES = "time_breakdown"
"""What the result and the figure are called."""

OTHER = "other"
"""Whatever is in no phase: choosing rows, what is shown, the loop itself."""

KINDS: Mapping[str, Kind] = {
    "loading data": "one-time",
    "loading the base": "one-time",
    "hashing the base": "one-time",  # before and after
    "weight analysis": "one-time",
    "initial population": "one-time",  # or the one adapter that other methods start from
    "server launch": "one-time",
    "preflight": "one-time",
    "recording": "one-time",  # the base, the start and the noise of the first loss, for `weft diff`
    "final evaluation": "one-time",
    "writing results": "one-time",
    "creating adapters": "repeated",  # members of a population, perturbed points
    "loading": "repeated",  # what was created, into the engine
    "evaluation": "repeated",  # losses, or completions
    "grading": "repeated",  # of completions
    "forward and backward": "repeated",
    "communication": "repeated",  # between processes, and the wait for the slowest
    "unloading": "repeated",
    "update": "repeated",  # the direction from what was evaluated, and the optimiser
    "validation": "repeated",
    "checkpoint": "repeated",
    "records": "repeated",  # a step's lines
    OTHER: "other",
}
"""Every phase of every method, and whether a run has it once or again and again."""

WHOLE = ("weight analysis", "preflight", "recording", "validation", "final evaluation")
"""Phases that are not taken apart: nothing in them is counted elsewhere."""


@dataclass(frozen=True)
class Phase:
    """What one phase took, in seconds, and how often it was begun."""

    name: str
    seconds: float
    count: int

    @property
    def kind(self) -> Kind:
        """Whether a run has it once or again and again."""
        return KINDS[self.name]


@dataclass(frozen=True)
class Breakdown:
    """Where the seconds of a run went: each of them in one phase, the longest phase first.

    The processes of a resumed run add up. `since_step` is 0 unless nothing is known of the steps
    before it. Seconds between the last checkpoint of a process and a kill are not known.
    """

    phases: tuple[Phase, ...]
    since_step: int = 0
    processes: int = 1
    runs: int = 1  # that trained together, so that these are the seconds of all of them

    @property
    def total(self) -> float:
        """The sum of all phases, which is the time of the run."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def shares(self) -> tuple[float, ...]:
        """Each phase's part of the total."""
        total = self.total
        return tuple(phase.seconds / total if total else 0.0 for phase in self.phases)

    def after(self, earlier: Breakdown) -> Breakdown:
        """With what earlier processes took for the same run."""
        seconds: dict[str, float] = {}
        counts: Counter[str] = Counter()
        for phase in (*earlier.phases, *self.phases):
            seconds[phase.name] = seconds.get(phase.name, 0.0) + phase.seconds
            counts[phase.name] += phase.count
        return Breakdown(
            _longest_first(seconds, counts),
            earlier.since_step,
            earlier.processes + self.processes,
            max(earlier.runs, self.runs),
        )

    def record(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "total_seconds": self.total,
            "since_step": self.since_step,
            "processes": self.processes,
            "runs_together": self.runs,
            "phases": [
                {
                    "name": phase.name,
                    "kind": phase.kind,
                    "seconds": phase.seconds,
                    "share": share,
                    "count": phase.count,
                }
                for phase, share in zip(self.phases, self.shares, strict=True)
            ],
        }

    @classmethod
    def of(cls, record: Mapping[str, Any], path: object) -> Breakdown:
        """What `record` stored, in the file `path`."""
        try:
            phases = [Phase(p["name"], p["seconds"], p["count"]) for p in record["phases"]]
            if unknown := {phase.name for phase in phases} - KINDS.keys():
                raise KeyError(*unknown)
            rest = record["since_step"], record["processes"], record["runs_together"]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path} is not a time breakdown of this Weft: {error}",
                hint="delete that file: it says where time went and nothing else",
            ) from None
        return cls(tuple(phases), *rest)


class Stopwatch:
    """Seconds by phase: in `with watch("update"): ...` they are those of `update`.

    Every second since the watch was made is in one phase: a nested phase's are not the outer
    one's, unless that is a `WHOLE` one, and what is in no phase is `other`. For the thread that
    runs the loop only.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, *, runs: int = 1) -> None:
        """Starts now. `runs` that train together share it."""
        self._runs = runs
        self._seconds: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._open = [OTHER]
        self._clock = clock
        self._mark = clock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """What happens in the block is in phase `name`, also when it raises."""
        assert name in KINDS, f"`{name}` is not a phase: see KINDS"
        self._charge()
        if self._open[-1] in WHOLE:
            name = self._open[-1]
        else:
            self._counts[name] += 1
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def breakdown(self, since_step: int = 0) -> Breakdown:
        """Where the seconds until now went."""
        self._charge()
        return Breakdown(_longest_first(self._seconds, self._counts), since_step, runs=self._runs)

    def _charge(self) -> None:
        """The time since the last call is that of the innermost open phase."""
        name, now = self._open[-1], self._clock()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._mark
        self._mark = now


def _longest_first(seconds: Mapping[str, float], counts: Mapping[str, int]) -> tuple[Phase, ...]:
    phases = [Phase(name, spent, counts.get(name, 0)) for name, spent in seconds.items()]
    return tuple(sorted(phases, key=lambda phase: -phase.seconds))


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
