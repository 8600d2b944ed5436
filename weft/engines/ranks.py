"""The processes that train one run: what they send each other, and how they end together.

Every rank holds the whole state and takes the same steps; what goes round are sums, and all see
the same ones, bit for bit. When one ends with an error all do, and one of them says why.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from itertools import count
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from weft.core.errors import CheckFailed, InputError, WeftError
from weft.core.launch import Place

ANSWER = timedelta(minutes=10)
"""How long a rank waits for the others before it takes them for gone."""
PATIENCE = timedelta(seconds=10)
"""How long a rank that fails waits for the first one to say so."""
RESUME = "what was saved is kept: go on with `weft train --resume RUN`, in any number of processes"

SILENT = (
    "another process of this run has ended without a word, or does not answer: it was killed, or "
    "its machine is gone"
)
TOLD = "this run was told to end (SIGTERM): its launcher was, or has lost another of its processes"

_meetings = count()


class Ended(WeftError):
    """Another rank has ended, and this one with it."""

    def __init__(self, problem: str, hint: str | None, exit_code: int = 1) -> None:
        """The other's own words and exit code, where it had any."""
        super().__init__(problem, hint)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ranks:
    """Number `rank` of `size` processes, and number `local` of those on its machine.

    The methods that send are called by all ranks, in the same order. They raise `Ended` where
    another rank has ended. Alone, they answer at once.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    store: Any = field(default=None, repr=False, compare=False)

    def share(self, costs: Sequence[int]) -> list[int]:
        """Which of these pieces of work are this rank's, in order: dear ones first, to the idlest.

        Every piece is some rank's; where there are fewer than ranks, some have none.
        """
        loads, own = [0] * self.size, []
        for piece in sorted(range(len(costs)), key=lambda piece: -costs[piece]):
            idlest = loads.index(min(loads))
            loads[idlest] += costs[piece]
            if idlest == self.rank:
                own.append(piece)
        return sorted(own)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, on the tensor's device; every rank has the same bits."""
        if self.size == 1:
            return tensor
        total = tensor.clone() if tensor.device.type == "cuda" else tensor.cpu().clone()
        with self._answered():
            dist.all_reduce(total)
        return total.to(tensor.device)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sum of a few float64 numbers, added in the order of the ranks."""
        if self.size == 1:
            return values
        total = torch.zeros(values.shape, dtype=torch.float64)
        for each in self._each(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))):
            total += each
        return total.numpy()

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return bool(self.sums(np.array([float(flag)]))[0])

    def gather(self, text: str) -> list[str]:
        """What each rank says."""
        if self.size == 1:
            return [text]
        data = text.encode()
        lengths = [int(each) for each in self._each(torch.tensor([len(data)]))]
        padded = torch.frombuffer(bytearray(data.ljust(max(*lengths, 1))), dtype=torch.uint8)
        each = zip(self._each(padded), lengths, strict=True)
        return [bytes(tensor[:length].tolist()).decode() for tensor, length in each]

    def of_first(self, make: Callable[[], bytes]) -> bytes:
        """What `make` gives on the first rank, which alone calls it."""
        data = make() if self.rank == 0 else b""
        if self.size == 1:
            return data
        length = torch.tensor([len(data)])
        with self._answered():
            dist.broadcast(length, 0)
            tensor = torch.frombuffer(bytearray(data.ljust(int(length) or 1)), dtype=torch.uint8)
            dist.broadcast(tensor, 0)
        return tensor[: int(length)].numpy().tobytes()

    def refuse_unlike(self, facts: Mapping[str, str]) -> None:
        """Raise `CheckFailed` unless these are the same on all ranks."""
        first, *others = map(json.loads, self.gather(json.dumps(dict(facts))))
        for rank, its in enumerate(others, start=1):
            if unlike := [what for what, fact in first.items() if its.get(what) != fact]:
                raise CheckFailed(
                    f"rank {rank} of {self.size} differs from rank 0 in {', '.join(unlike)}",
                    hint="all of them need the same files, packages and kind of hardware",
                )

    def device(self, asked: str) -> str:
        """The device of this rank, where the configuration says `asked`."""
        if self.size == 1 or not asked.startswith("cuda"):
            return asked
        if asked != "cuda":
            raise InputError(
                f"device is {asked}, and {self.size} processes cannot all be there",
                hint="give device=cuda: each process takes a device of its own",
            )
        if torch.cuda.is_available() and self.local >= torch.cuda.device_count():
            raise InputError(
                f"process {self.local + 1} of this machine has no CUDA device: there are "
                f"{torch.cuda.device_count()}",
                hint="start no more processes on a machine than it has devices",
            )
        return f"cuda:{self.local}"

    def _each(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor: all of one shape, on the CPU."""
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._answered():
            dist.all_gather(found, tensor)
        return found

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """What goes wrong between ranks is that one of them has ended."""
        try:
            yield
        except RuntimeError as error:
            raise self.ended(SILENT) from error

    def ended(self, unsaid: str) -> Ended:
        """Why this rank cannot go on: what another has said, or `unsaid`."""
        assert self.store is not None
        for rank in range(self.size):
            with suppress(RuntimeError):  # the store is gone, too
                if rank != self.rank and self.store.check([f"ended {rank}"]):
                    said = json.loads(self.store.get(f"ended {rank}"))
                    who = "" if said["passed_on"] else f"rank {rank} of {self.size}: "
                    return Ended(who + said["problem"], said["hint"], said["exit_code"])
        return Ended(unsaid, RESUME)

    def leave(self, error: BaseException, tell: Callable[[WeftError], None] | None) -> None:
        """End because of `error`: the others hear of it, and one of them is let `tell` it.

        That is the first rank, or another where that has nothing to say.
        """
        assert self.store is not None
        said: dict[str, Any] = {"problem": f"{type(error).__name__}: {error}"}
        said |= {"hint": None, "exit_code": 1, "passed_on": isinstance(error, Ended)}
        if isinstance(error, WeftError):
            said |= {name: getattr(error, name) for name in ("problem", "hint", "exit_code")}
        with suppress(RuntimeError):
            self.store.set(f"ended {self.rank}", json.dumps(said))
        dist.destroy_process_group()  # whoever waits for this rank hears of it
        with suppress(RuntimeError):
            if self.rank and isinstance(error, WeftError):
                with suppress(dist.DistStoreError):
                    self.store.wait(["told"], PATIENCE)
            if self.store.add("tellers", 1) > 1:
                return
        if isinstance(error, WeftError) and tell is not None:
            tell(error)
        with suppress(RuntimeError):
            self.store.set("told", "")


ALONE = Ranks()


@contextmanager
def joined(here: Place, tell: Callable[[WeftError], None] | None = None) -> Iterator[Ranks]:
    """Meet the other processes of this launch for as long as a run takes.

    When one of them leaves with an error all do, and `tell` is called for it in one of them.
    """
    if here.size == 1:
        yield ALONE
        return
    ranks = _met(here)
    try:
        with _told_to_end(ranks):
            yield ranks
    except BaseException as error:
        with _deaf():
            ranks.leave(error, tell)
        raise
    dist.destroy_process_group()


def _met(here: Place) -> Ranks:
    """The ranks, once all are there: gloo between processors, nccl between CUDA devices."""
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    backend = "gloo"
    if torch.cuda.is_available() and here.local < torch.cuda.device_count():
        torch.cuda.set_device(here.local)
        backend = "cpu:gloo,cuda:nccl"
    try:
        store = PrefixStore(f"weft {next(_meetings)}", _place_to_meet(here))
        dist.init_process_group(
            backend, store=store, rank=here.rank, world_size=here.size, timeout=ANSWER
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the {here.size} processes of this launch cannot meet: {error}",
            hint="MASTER_ADDR and MASTER_PORT say where: the port must be free, and reachable",
        ) from error
    return Ranks(here.rank, here.size, here.local, store)


@cache
def _place_to_meet(here: Place) -> Any:
    """The launch's store; the port is taken once."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", here.rank, here.size, timeout=ANSWER))
    return store


@contextmanager
def _told_to_end(ranks: Ranks) -> Iterator[None]:
    """Launchers send SIGTERM to the rest when one process has ended: that becomes words."""

    def end(number: int, frame: FrameType | None) -> None:
        raise ranks.ended(TOLD)

    with _handled(signal.SIGTERM, end):
        yield


@contextmanager
def _deaf() -> Iterator[None]:
    """Who is leaving anyway need not be told to."""
    with _handled(signal.SIGTERM, signal.SIG_IGN):
        yield


@contextmanager
def _handled(number: int, handler: Any) -> Iterator[None]:
    try:
        before = signal.signal(number, handler)
    except ValueError:  # not in the main thread: signals go elsewhere
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)
