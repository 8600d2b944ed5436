"""What a benchmark is, and the usual kind: contenders that run the same batches in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import breakdown, report
from benchmarks.device import CPU, Device
from benchmarks.harness import Contender, Measurement, alternate
from benchmarks.limit import Limit
from weft.core.batch import Batch


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line."""

    rounds: int = 1
    steps: int = 1
    quick: bool = False
    profile: bool = False
    device: Device = CPU

    @property
    def timed(self) -> int:
        """Steps of each contender, over all rounds."""
        return self.rounds * self.steps


@dataclass(frozen=True)
class Benchmark:
    """A name, and how its report is made; `page` has a place for it."""

    name: str
    run: Callable[[Options], report.Report]
    page: Path = report.PAGE
    only_cpu: str | None = None
    """Why it has nothing to do on a GPU."""


@dataclass(frozen=True)
class Race:
    """Contenders, one of which is `subject`, and the same work for all of them."""

    what: str
    contenders: Sequence[Contender]
    batches: Sequence[Batch]
    vocabulary: int
    warm_up: Sequence[Batch] = ()
    limits: Sequence[Limit] = ()
    tokens: Callable[[Batch], int] = lambda batch: batch.tokens
    """How many tokens of a batch count."""
    check: Callable[[Sequence[Measurement]], None] = lambda measurements: None
    """Raises where contenders did not compute the same."""
    subject: str = "weft"
    profiled: Race | None = None
    """A shorter one for the profile: each operation of it is kept in memory."""


def raced(name: str, make: Callable[[Options], Race]) -> Benchmark:
    """A benchmark of contenders."""

    def run(options: Options) -> report.Speeds:
        load = report.load()
        race = make(options)
        measurements = alternate(
            race.contenders,
            race.batches,
            options.rounds,
            race.warm_up,
            tell,
            race.tokens,
            options.device,
        )
        race.check(measurements)
        what = f"{race.what}; {options.timed} timed steps in {options.rounds} rounds"
        return report.Speeds(
            **report.origin(name, what, load, options.device),
            subject=race.subject,
            measurements=tuple(measurements),
            limits=tuple(race.limits),
            profile=_profile(race, options.device) if options.profile else None,
        )

    return Benchmark(name, run)


def tell(progress: str) -> None:
    """What is running now."""
    print(progress, file=sys.stderr)


def _profile(race: Race, device: Device) -> dict[str, dict[str, float]]:
    race, found = race.profiled or race, {}
    for contender in race.contenders:
        tell(f"profile: {contender.name}")
        found[contender.what] = breakdown.seconds_by_kind(
            contender, race.warm_up, race.batches[:1], race.vocabulary, device
        )
    return found
