"""A worker: an engine somewhere, and the part of a population that it is asked to grade.

What goes to it is the centre and the noise, once, and then which members; what comes back is their
rewards. Nothing in here knows how any of that travels.

Shapes: n members of an order, E prompts, P parameters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from weft import __version__
from weft.core.batch import Batch
from weft.core.errors import EngineError, InputError
from weft.core.keys import Key
from weft.engines.config import EngineConfig
from weft.engines.engine import Engine
from weft.engines.population import Alone, Generation, Work
from weft.engines.registry import ENGINES, open_engine
from weft.engines.reward import Reward
from weft.methods.estimate import Graded
from weft.methods.population import Population
from weft.model.bank import Bank, Weave
from weft.model.noise import normal
from weft.model.objectives import Objective
from weft.runs.timing import Stopwatch

TRIAL = 1 << 16
"""Numbers drawn to see that noise is the same everywhere: enough for the rare paths of the draw."""


@dataclass(frozen=True, eq=False)
class Posting:
    """What a worker is to be: plain values, from which it makes everything else itself."""

    engine: EngineConfig
    work: Work
    threads: int

    @property
    def here(self) -> bool:
        """Whether the worker computes itself, on its device."""
        return ENGINES[self.engine.name].here

    def open(self) -> Engine:
        """The engine."""
        work = self.work
        own = (work.dtype, work.device) if self.here else (None, None)
        return open_engine(
            self.engine,
            work.base,
            dtype=own[0],
            device=own[1],
            rows_per_forward=work.rows_per_forward,
        )


@dataclass(frozen=True, eq=False)
class Standing:
    """What stays from one generation to the next: the noise, and what lies below the members."""

    noise_P: np.ndarray
    stack: Mapping[str, tuple[np.ndarray, ...]] | None

    @classmethod
    def of(cls, noise_P: torch.Tensor, stack: Bank | None) -> Standing:
        """As plain arrays."""
        arrays = None
        if stack is not None:
            arrays = {
                name: tuple(t.cpu().numpy() for t in (w.a_NrI, w.b_NOr, w.scale_N11))
                for name, w in stack.sites.items()
            }
        return cls(noise_P.cpu().numpy(), arrays)

    @property
    def digest(self) -> str:
        """SHA-256 of everything, computed anew."""
        digest = hashlib.sha256(self.noise_P.tobytes())
        for name, arrays in (self.stack or {}).items():
            digest.update(name.encode())
            for array in arrays:
                digest.update(array.tobytes())
        return digest.hexdigest()

    def bank(self, device: str) -> Bank | None:
        """The stack again."""
        if self.stack is None:
            return None
        sites = {
            name: Weave(*(torch.tensor(array, device=device) for array in arrays))
            for name, arrays in self.stack.items()
        }
        return Bank(("stack",), sites)


@dataclass(frozen=True, eq=False)
class Moving:
    """What is another in every generation: the centre, and what its members are asked."""

    centre_P: np.ndarray
    batch: Batch

    def digest(self, standing: str) -> str:
        """SHA-256 of the centre, and of what stands; computed anew."""
        digest = hashlib.sha256(self.centre_P.tobytes())
        digest.update(standing.encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Order:
    """Which members of which generation are to be graded; small."""

    generation: int
    digest: str
    key: Key
    size: int
    antithetic: bool
    sampling: Key
    start: int
    stop: int

    def __str__(self) -> str:
        return f"members {self.start} to {self.stop - 1}"

    def generation_of(self, moving: Moving, standing: Standing, device: str) -> Generation:
        """The generation again, on a device."""
        centre_P = torch.tensor(moving.centre_P, device=device)
        noise_P = torch.tensor(standing.noise_P, device=device)
        population = Population(centre_P, noise_P, self.key, self.size, self.antithetic)
        return Generation(population, standing.bank(device), moving.batch, self.sampling)


@dataclass(frozen=True, eq=False)
class Answer:
    """What an order came to. Of texts there are the centre's only."""

    order: Order
    digest: str
    graded: Graded


@dataclass(frozen=True)
class Fault:
    """What a worker could not do, and why; `final`: nobody else could, either."""

    problem: str
    hint: str | None = None
    final: bool = False


class Worker:
    """Lives as long as a run; answers with values only, also when something is wrong."""

    def __init__(self) -> None:
        """Nothing yet: `open` does it, and can say what went wrong."""
        self._alone: Alone | None = None
        self._device = "cpu"

    def open(self, posting: Posting) -> dict[str, str] | Fault:
        """Load the base or reach the server; returns what must be the same everywhere."""
        torch.set_num_threads(posting.threads)
        try:
            work, engine = posting.work, posting.open()
            if isinstance(work.objective, Reward):
                work.objective.grader.ready()
            self._alone = Alone(engine, work.layout, work.objective)
            if posting.here:
                self._device = work.device
            return identity(engine, work.objective)
        except Exception as error:
            return _fault(error)

    def grade(self, order: Order, moving: Moving, standing: Standing) -> Answer | Fault:
        """The rewards of an order's members."""
        assert self._alone is not None
        try:
            found = moving.digest(standing.digest)
            if found != order.digest:
                return Fault(f"the centre that arrived is {found[:12]}, not {order.digest[:12]}")
            generation = order.generation_of(moving, standing, self._device)
            graded = self._alone.span(generation, order.start, order.stop, Stopwatch())
            return Answer(order, found, _without_texts(graded, order))
        except Exception as error:
            return _fault(error)

    def close(self) -> None:
        """Let go of the engine and of the grader."""
        if self._alone is not None:
            self._alone.engine.close()
            if isinstance(self._alone.objective, Reward):
                self._alone.objective.grader.close()


def identity(engine: Engine, objective: Objective | Reward) -> dict[str, str]:
    """What workers have to have in common, for a member to have the same reward with any of them.

    That of an engine in this process has the hash of its base's weights.
    """
    from weft.engines.local import LocalEngine

    record = engine.record()
    same = {"Weft": __version__, "dtype of the base": record["dtype"]}
    if isinstance(engine, LocalEngine):
        same["base"] = engine.base.fingerprint()
    else:
        same["served model"] = record["model"]
    same["noise"] = hashlib.sha256(normal(TRIAL, Key.of(0)).numpy().tobytes()).hexdigest()
    if isinstance(objective, Reward):
        grader = {name: said for name, said in objective.grader.record().items() if name != "file"}
        same["reward"] = json.dumps(grader, sort_keys=True)
    return same


def _fault(error: Exception) -> Fault:
    if isinstance(error, InputError | EngineError):
        return Fault(error.problem, error.hint, isinstance(error, InputError))
    return Fault(f"{type(error).__name__}: {error}")


def _without_texts(graded: Graded, order: Order) -> Graded:
    """All texts of a population would be most of what travels."""
    is_centre = [number == order.size for number in range(order.start, order.stop)]
    return replace(
        graded,
        texts=tuple(
            own if keep else () for own, keep in zip(graded.texts, is_centre, strict=False)
        ),
        ids=tuple(own if keep else () for own, keep in zip(graded.ids, is_centre, strict=False)),
    )
