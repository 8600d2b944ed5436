"""Members handed out to workers that die, hang, are slow, or answer something else.

Whatever happens, a generation is every member once: the first right answer to an order counts, and
none is left out for being slow, for slow means long. Where that cannot be, it is an error.

    lost, refused   the worker is started again, and its order goes to whoever is free
    slow            after `patience` the order goes to another, too; after twice that the worker
                    counts as lost
    given up        a worker that failed `retries` times in a row after its first; the run, when
                    nobody is left or one order has failed as often
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from weft.core.errors import EngineError, InputError
from weft.engines.crew.worker import Answer, Fault, Order

KEPT = "what was made until here is kept: go on with `weft train --resume`"


class Lost(Exception):
    """A worker is gone, and says why."""


class Executor(Protocol):
    """Where workers live. A ticket is something that is under way."""

    def start(self, worker: int) -> Hashable:
        """A fresh worker in this place, whatever was there; it comes to its identity."""
        ...

    def grade(self, worker: int, order: Order, shared: Any) -> Hashable:
        """It comes to the answer."""
        ...

    def wait(self, tickets: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        """Those that have come to something; none after so many seconds."""
        ...

    def take(self, ticket: Hashable) -> Any:
        """What it has come to; raises `Lost` where its worker is gone."""
        ...

    def share(self, value: Any) -> Any:
        """A handle to something that many orders need."""
        ...

    def capacity(self) -> str:
        """What there is to run workers on, in words."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...


@dataclass(eq=False)
class Flight:
    """What a worker is at."""

    worker: int
    order: Order | None  # None: it starts
    since: float
    doubled: bool = False


class Round:
    """The orders of one generation: those that somebody has yet to take, and what came back."""

    def __init__(self, orders: Sequence[Order] = ()) -> None:
        """None is done."""
        self.todo = deque(orders)
        self.done: dict[Order, Answer | None] = dict.fromkeys(orders)
        self._failed: Counter[Order] = Counter()

    def lacks(self, order: Order | None) -> bool:
        """Whether an order is of this generation, and has no answer."""
        return order is not None and order in self.done and self.done[order] is None

    @property
    def missing(self) -> list[Order]:
        """The orders without an answer."""
        return [order for order in self.done if self.lacks(order)]

    def again(self, order: Order | None, why: str, retries: int) -> None:
        """Somebody failed on an order: another is to take it, unless too many have failed."""
        if order is None or not self.lacks(order):
            return
        self._failed[order] += 1
        if self._failed[order] > retries:
            raise EngineError(
                f"{order} could not be graded in {self._failed[order]} attempts; the last: {why}",
                hint=KEPT,
            )
        if order not in self.todo:
            self.todo.appendleft(order)


@dataclass(eq=False)
class Dispatch:
    """Workers 0..count-1 of an executor, one order each at a time.

    `expected` is what every worker has to be (`worker.identity`); `notice` is told whatever went
    wrong and was mended.
    """

    executor: Executor
    count: int
    expected: Mapping[str, str]
    patience: float
    start_timeout: float
    retries: int
    notice: Callable[[str], None]
    now: Callable[[], float] = time.monotonic
    last: str = ""
    """What went wrong last."""
    _flights: dict[Hashable, Flight] = field(default_factory=dict)
    _idle: deque[int] = field(default_factory=deque)
    _failures: Counter[int] = field(default_factory=Counter)  # of a worker since its last answer

    def open(self) -> None:
        """Start all workers; raises `EngineError` where one of them cannot be had."""
        for worker in range(self.count):
            self._start(worker)
        nothing, begun = Round(), self.now()
        while len(self._idle) < self.count:
            for ticket in self._landed():
                self._land(ticket, nothing)
            lost = any(times > self.retries for times in self._failures.values())
            if lost or self.now() - begun >= self.start_timeout:
                raise EngineError(
                    f"{len(self._idle)} of {self.count} workers could be started in "
                    f"{self.now() - begun:.0f} s" + (f": {self.last}" if self.last else ""),
                    hint=self.executor.capacity(),
                )

    def __call__(self, orders: Sequence[Order], shared: Any) -> list[Answer]:
        """The answers, in order."""
        its = Round(orders)
        while missing := its.missing:
            self._hand_out(its, shared)
            if not self._flights:
                raise EngineError(
                    f"no worker is left, and {missing[0]} have no reward; the last of them: "
                    f"{self.last}",
                    hint=KEPT,
                )
            for ticket in self._landed():
                self._land(ticket, its)
            self._look_at_the_clock(its)
        return [answer for answer in its.done.values() if answer is not None]

    def _start(self, worker: int) -> None:
        self._flights[self.executor.start(worker)] = Flight(worker, None, self.now())

    def _hand_out(self, its: Round, shared: Any) -> None:
        while its.todo and self._idle:
            order = its.todo.popleft()
            if its.lacks(order):
                worker = self._idle.popleft()
                ticket = self.executor.grade(worker, order, shared)
                self._flights[ticket] = Flight(worker, order, self.now())

    def _landed(self) -> Sequence[Hashable]:
        due = min(flight.since + self._limit(flight) for flight in self._flights.values())
        return self.executor.wait(list(self._flights), max(0.01, due - self.now()))

    def _land(self, ticket: Hashable, its: Round) -> None:
        """What a ticket has come to: an answer that counts, one that is late, or none."""
        flight = self._flights.pop(ticket)
        order = flight.order
        try:
            found = self.executor.take(ticket)
        except Lost as lost:
            self._fail(flight, f"it is lost ({lost})", its)
            return
        if isinstance(found, Fault):
            if found.final:
                raise InputError(f"worker {flight.worker}: {found.problem}", hint=found.hint)
            self._fail(flight, found.problem, its)
            return
        if order is None:
            self._refuse_another(flight.worker, found)
        elif (found.order, found.digest) != (order, order.digest):
            self._fail(flight, f"asked for {order}, it answered with something else", its)
            return
        else:
            self._failures[flight.worker] = 0
            if its.lacks(order):  # else it is late, and another was first
                its.done[order] = found
        self._idle.append(flight.worker)

    def _look_at_the_clock(self, its: Round) -> None:
        for ticket, flight in list(self._flights.items()):
            seconds = self.now() - flight.since
            if seconds < self._limit(flight):
                continue
            if flight.order is None or flight.doubled:
                del self._flights[ticket]
                self._fail(flight, f"it has said nothing for {seconds:.0f} s", its)
                continue
            flight.doubled = True
            if its.lacks(flight.order):
                its.todo.append(flight.order)
                self.notice(
                    f"worker {flight.worker} has been at {flight.order} for {seconds:.0f} s: "
                    "another is asked, too"
                )

    def _fail(self, flight: Flight, why: str, its: Round) -> None:
        """Start the worker again, and hand its order out again, as often as that may be."""
        self._failures[flight.worker] += 1
        self.last = why
        if self._failures[flight.worker] > self.retries:
            self.notice(f"worker {flight.worker} is given up: {why}")
        else:
            self.notice(f"worker {flight.worker} is started again: {why}")
            self._start(flight.worker)
        its.again(flight.order, why, self.retries)

    def _refuse_another(self, worker: int, found: Mapping[str, str]) -> None:
        """With other weights, another reward or another noise, its rewards would be of nobody."""
        for name in sorted(self.expected.keys() | found.keys()):
            here, there = self.expected.get(name), found.get(name)
            if here != there:
                raise EngineError(
                    f"worker {worker} is not like this process: its {name} is {there}, and here "
                    f"it is {here}",
                    hint="give every machine the same versions and files",
                )

    def _limit(self, flight: Flight) -> float:
        """The age at which something has to be done about a flight."""
        if flight.order is None:
            return self.start_timeout
        return 2 * self.patience if flight.doubled else self.patience
