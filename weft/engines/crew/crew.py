"""A crew of workers elsewhere: a generation goes out as orders, and comes back as rewards.

Shapes: N members, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from weft.core.batch import even_spans
from weft.engines.config import RayConfig
from weft.engines.crew.dispatch import Dispatch, Executor
from weft.engines.crew.worker import Moving, Order, Posting, Standing, identity
from weft.engines.engine import Engine
from weft.engines.population import Generation, Work, at_once
from weft.methods.estimate import Graded
from weft.model.adapter import Layout
from weft.runs.timing import Stopwatch

MEMBERS = 8
"""Graded together where the run does not say: so many, whatever the number of workers is."""

HELD = 8
"""Stackings of noise and commits that stay with the workers: lanes take turns with them."""


@dataclass(eq=False)
class SharedOut:
    """Every generation over all workers. `members` are graded together by one of them."""

    executor: Executor
    dispatch: Dispatch
    layout: Layout
    members: int
    _standing: dict[str, Any] = field(default_factory=dict)  # handles by digest
    _numbers: count[int] = field(default_factory=count)

    def rewards(self, generation: Generation, clock: Stopwatch) -> Graded:
        """Every member in order, and the centre in the last row."""
        population = generation.population
        with clock("loading"):
            standing = Standing.of(population.noise_P, generation.stack)
            moving = Moving(population.centre_P.cpu().numpy(), generation.batch)
            below = standing.digest
            handles = self.executor.share(moving), self._handle(standing, below)
        number, digest = next(self._numbers), moving.digest(below)
        orders = [
            Order(
                number,
                digest,
                population.key,
                population.size,
                population.antithetic,
                generation.key,
                start,
                stop,
            )
            for start, stop in even_spans(generation.members, at_once(self.layout, self.members))
        ]
        with clock("evaluation"):
            answers = self.dispatch(orders, handles)
        return Graded.together([answer.graded for answer in answers])

    def close(self) -> None:
        """End the workers."""
        self.executor.close()

    def _handle(self, standing: Standing, digest: str) -> Any:
        """Shared once, and again only when it was too long ago."""
        handle = self._standing.pop(digest, None) or self.executor.share(standing)
        self._standing[digest] = handle  # as the newest
        while len(self._standing) > HELD:
            del self._standing[next(iter(self._standing))]
        return handle


def open_crew(
    config: RayConfig, work: Work, engine: Engine, notice: Callable[[str], None]
) -> SharedOut:
    """Workers on a Ray cluster, each of them like `engine`.

    Raises `EngineError` where they cannot be had or differ, `InputError` where they cannot do it.
    """
    from weft.engines.crew.cluster import RayExecutor

    base = str(Path(work.base).absolute()) if Path(work.base).is_dir() else work.base
    work = replace(work, base=base)
    executor = RayExecutor(config, [Posting(own, work, config.cores) for own in config.engines])
    dispatch = Dispatch(
        executor,
        len(config.engines),
        identity(engine, work.objective),
        patience=config.patience,
        start_timeout=config.start_timeout,
        retries=config.retries,
        notice=notice,
    )
    try:
        dispatch.open()
    except BaseException:
        executor.close()
        raise
    return SharedOut(executor, dispatch, work.layout, work.members or MEMBERS)
