"""Workers as Ray actors: on this machine, or on all machines of a cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any

from weft.core.errors import EngineError
from weft.engines.config import RayConfig
from weft.engines.crew.dispatch import Lost
from weft.engines.crew.worker import Posting, Worker

STORE_BYTES = 256 << 20
"""Memory of a cluster on this machine for what workers share; Ray's own default is a third."""
REACHING = 10.0
"""Seconds to reach a cluster."""
CLOSING = 10.0
"""Seconds in which workers may end in good order."""


class RayExecutor:
    """Actors that hold an engine each.

    Ray itself restarts nothing and tries nothing again: who is lost is replaced in `Dispatch`,
    where it is counted and told.
    """

    def __init__(self, config: RayConfig, postings: Sequence[Posting]) -> None:
        """Reach the cluster, or start one; raises `EngineError` where there is none."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._ray, self._postings = ray, postings
        self._actors: dict[int, Any] = {}
        self._owns = not ray.is_initialized()
        if self._owns:
            settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if config.address == "local":
                settings |= {
                    "num_cpus": sum(posting.threads for posting in postings),
                    "include_dashboard": False,
                    "object_store_memory": STORE_BYTES,
                    "_node_ip_address": "127.0.0.1",
                }
            try:
                _reach(config.address)
                ray.init(address=config.address, **settings)
            except (RuntimeError, ValueError, ImportError, OSError) as error:
                raise EngineError(
                    f"engine.address: there is no Ray cluster at {config.address}: {error}",
                    hint="start one with `ray start --head`, or leave engine.address out for one "
                    "on this machine",
                ) from None

    def start(self, worker: int) -> Hashable:
        """A fresh actor, which takes a place of the cluster when there is one."""
        self._end(worker)
        posting = self._postings[worker]
        kind = self._ray.remote(Worker).options(
            num_cpus=posting.threads,
            num_gpus=float(posting.work.device.startswith("cuda")),
            max_restarts=0,
            max_task_retries=0,
        )
        self._actors[worker] = kind.remote()
        return self._actors[worker].open.remote(posting)

    def grade(self, worker: int, order: Any, shared: Any) -> Hashable:
        """Handles among the arguments arrive as what they stand for."""
        return self._actors[worker].grade.remote(order, *shared)

    def wait(self, tickets: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        """The first that have come to something."""
        ready, _ = self._ray.wait(list(tickets), num_returns=1, timeout=seconds)
        return ready

    def take(self, ticket: Hashable) -> Any:
        """The value; whatever Ray says instead means that the worker is of no use any more."""
        try:
            return self._ray.get(ticket)
        except self._ray.exceptions.RayError as error:
            raise Lost(_said(error)) from None

    def share(self, value: Any) -> Any:
        """Into the object store, from where each machine fetches it once."""
        return self._ray.put(value)

    def capacity(self) -> str:
        """What the cluster has."""
        there = self._ray.cluster_resources()
        wanted = sum(posting.threads for posting in self._postings)
        gpus = sum(posting.work.device.startswith("cuda") for posting in self._postings)
        return (
            f"the workers ask for {wanted} CPUs and {gpus} GPUs, and the cluster has "
            f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
        )

    def close(self) -> None:
        """In good order where workers still answer; nothing is left running."""
        if not self._ray.is_initialized():
            return
        closing = [actor.close.remote() for actor in self._actors.values()]
        with suppress(self._ray.exceptions.RayError):
            if closing:
                self._ray.wait(closing, num_returns=len(closing), timeout=CLOSING)
        for worker in list(self._actors):
            self._end(worker)
        if self._owns:
            self._ray.shutdown()

    def _end(self, worker: int) -> None:
        actor = self._actors.pop(worker, None)
        if actor is not None:
            self._ray.kill(actor)


def _reach(address: str) -> None:
    """Somebody listens there: Ray itself would try for minutes, and then end the process."""
    if ":" in address:
        host, port = address.removeprefix("ray://").rsplit(":", 1)
        socket.create_connection((host, int(port)), timeout=REACHING).close()


def _said(error: Exception) -> str:
    """The line of Ray's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
