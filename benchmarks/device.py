"""Where everyone computes: a clock that waits until work is done, and the memory that it takes.

A GPU takes orders and works them off later, so a clock that does not wait times the ordering. On
the CPU there is nothing to wait for.

Peak memory on the CPU. Once the process has given its free memory back (`gc`, `malloc_trim`) its
resident set size is the *baseline*; the largest size while the contender is built and runs is its
*peak*; `peak - baseline` is what it needs, model included. Linux keeps that peak, and begins it
anew when it is asked to; elsewhere a thread reads the size every 5 ms. The absolute peak counts
the libraries too, which are loaded before the first round. On a GPU PyTorch counts what it gave
out, and its peak can be reset.
"""

from __future__ import annotations

import gc
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch.profiler import record_function

from weft.core.errors import InputError
from weft.core.memory import give_back

SAMPLE_SECONDS = 0.005
RESET = Path("/proc/self/clear_refs")
"""Where Linux is told to begin a process's peak of memory anew."""
CALLS = 10
"""Between two events of a GPU."""
AHEAD = 2**21
"""Cycles for which a GPU waits, a millisecond, while it is given its orders."""
NAMES = ("cpu", "cuda")


@dataclass
class Memory:
    """Bytes held before a block, and the most within it."""

    baseline_bytes: int
    peak_bytes: int = field(default=0)


@dataclass(frozen=True)
class Device:
    """One of `NAMES`."""

    name: str = "cpu"

    @classmethod
    def of(cls, name: str | None = None) -> Device:
        """The one that was asked for; else a GPU where there is one."""
        there = torch.cuda.is_available()
        if name == "cuda" and not there:
            raise InputError("there is no CUDA device here", "use --device cpu")
        return cls(name or ("cuda" if there else "cpu"))

    @property
    def is_cpu(self) -> bool:
        """Whether it is the processor."""
        return self.name == "cpu"

    @property
    def torch(self) -> torch.device:
        """As PyTorch calls it."""
        return torch.device(self.name)

    @property
    def what(self) -> str:
        """The hardware: processor, cores, threads and memory; before that a GPU's name."""
        memory = psutil.virtual_memory().total / 2**30
        cores = psutil.cpu_count(logical=False)
        here = f"{_processor()}, {cores} cores, {torch.get_num_threads()} threads, {memory:.0f} GiB"
        if self.is_cpu:
            return here
        gpu = torch.cuda.get_device_properties(self.torch)
        size = f"{gpu.total_memory / 2**30:.0f} GiB"
        return f"{gpu.name}, {size}, CUDA {torch.version.cuda}, {_driver()}; {here}"

    def wait(self) -> None:
        """Until everything that was asked for is done."""
        if not self.is_cpu:
            torch.cuda.synchronize(self.torch)

    def now(self) -> float:
        """Seconds on a clock, with nothing left undone."""
        self.wait()
        return time.perf_counter()

    def seconds(self, call: Callable[[], object]) -> float:
        """What a call takes; on a GPU by its own events, without the time to ask for it."""
        if self.is_cpu:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        self.wait()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(AHEAD)
        start.record()
        for _ in range(CALLS):
            call()
        end.record()
        self.wait()
        return start.elapsed_time(end) / 1e3 / CALLS

    @contextmanager
    def memory(self) -> Iterator[Memory]:
        """Give free memory back, note the baseline, then watch the peak until the block ends."""
        gc.collect()
        if self.is_cpu:
            give_back()
            with _kept() if RESET.exists() else _sampled() as memory:
                yield memory
            return
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.torch)
        memory = Memory(torch.cuda.memory_allocated(self.torch))
        try:
            yield memory
        finally:
            memory.peak_bytes = torch.cuda.max_memory_allocated(self.torch)


CPU = Device()

STEP = "benchmark step "
"""How a profiler's ranges of steps begin; their numbers follow."""


class Clock:
    """Seconds of steps, each from when nothing is left undone to when nothing is again."""

    def __init__(self, device: Device = CPU) -> None:
        self.device = device
        self.seconds: list[float] = []
        self._start = 0.0

    def start(self) -> None:
        """Of a step."""
        self._range = record_function(f"{STEP}{len(self.seconds)}")
        self._range.__enter__()
        self._start = self.device.now()

    def stop(self) -> None:
        """Of the step."""
        self.seconds.append(self.device.now() - self._start)
        self._range.__exit__(None, None, None)

    @contextmanager
    def step(self) -> Iterator[None]:
        """The block."""
        self.start()
        yield
        self.stop()


@contextmanager
def _kept() -> Iterator[Memory]:
    """By the system, which disturbs nobody."""
    RESET.write_text("5")
    memory = Memory(psutil.Process().memory_info().rss)
    try:
        yield memory
    finally:
        memory.peak_bytes = _most_resident()


def _most_resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(kilobytes) * 1024


@contextmanager
def _sampled() -> Iterator[Memory]:
    """By looking again and again."""
    process = psutil.Process()
    memory = Memory(process.memory_info().rss)
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            memory.peak_bytes = max(memory.peak_bytes, process.memory_info().rss)
            done.wait(SAMPLE_SECONDS)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield memory
    finally:
        done.set()
        watcher.join()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _driver() -> str:
    """NVIDIA's kernel module says its version on Linux; elsewhere it is not told."""
    version = Path("/sys/module/nvidia/version")
    return f"driver {version.read_text().strip()}" if version.exists() else "driver unknown"
