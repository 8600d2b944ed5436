"""`python -m benchmarks.workers`: one process, and Ray's workers, on the same generations.

Prints seconds of a generation, and the bytes that go out and come back, counted as they are pickled
for the workers. One thread each.
"""

from __future__ import annotations

import os
import pickle
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray
import torch

from weft.core.batch import Batch
from weft.core.keys import Key
from weft.data.config import DataConfig
from weft.data.dataset import load_splits
from weft.data.rewards.countdown import Countdown
from weft.data.tokenizer import load_tokenizer
from weft.engines.config import RayConfig
from weft.engines.crew.crew import open_crew
from weft.engines.crew.dispatch import Executor
from weft.engines.local import LocalEngine
from weft.engines.population import Alone, Crew, Generation, Work
from weft.engines.reward import Reward
from weft.methods.population import Population
from weft.model.base import load_base
from weft.model.config import AdapterConfig
from weft.model.decoding import Decoding
from weft.model.noise import normal
from weft.model.sites import choose_sites
from weft.runs.timing import Stopwatch

BASE, TASK, RANK = "weft/tiny", "countdown-easy", 8
POPULATION, PROMPTS, TOKENS, MEMBERS, GENERATIONS = 30, 8, 16, 8, 5


class Counting:
    """An executor that counts what passes through it."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.clear()

    def clear(self) -> None:
        self.shared = self.orders = self.answers = 0

    @property
    def bytes(self) -> tuple[int, int, int]:
        return self.shared, self.orders, self.answers

    def share(self, value: Any) -> Any:
        self.shared += len(pickle.dumps(value, protocol=5))
        return self.inner.share(value)

    def grade(self, worker: int, order: Any, shared: Any) -> Any:
        self.orders += len(pickle.dumps(order, protocol=5))
        return self.inner.grade(worker, order, shared)

    def take(self, ticket: Any) -> Any:
        answer = self.inner.take(ticket)
        self.answers += len(pickle.dumps(answer, protocol=5))
        return answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def main() -> None:
    torch.set_num_threads(1)
    base = load_base(BASE)
    layout = choose_sites(base.sites, AdapterConfig(rank=RANK))
    rows = load_splits(DataConfig(task=TASK), load_tokenizer(BASE), ("train",), responses=False)
    reward = Reward(Countdown(), Decoding(max_tokens=TOKENS, ignore_eos=True))
    work = Work(BASE, "float32", "cpu", layout, reward, MEMBERS)
    batch = Batch(tuple(rows["train"].examples[:PROMPTS]))
    print(
        f"{layout.size:,} parameters, {POPULATION} members and the centre in orders of {MEMBERS},"
    )
    print(f"{PROMPTS} prompts, {TOKENS} tokens each; load average {os.getloadavg()[0]:.1f}")
    crews: dict[str, Crew] = {"one process": Alone(LocalEngine(base), layout, reward, MEMBERS)}
    counts = {}
    ray.init(  # one cluster for both
        address="local",
        num_cpus=3,
        include_dashboard=False,
        object_store_memory=256 << 20,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    for workers in (1, 2):
        config = RayConfig(workers=workers, threads=1)
        crew = open_crew(config, work, LocalEngine(base), print)
        name = f"{workers} worker{'s' * (workers > 1)}"
        counts[name] = crew.executor = crew.dispatch.executor = Counting(crew.executor)
        crews[name] = crew
    seconds: dict[str, list[float]] = {name: [] for name in crews}
    for number in range(1 + GENERATIONS):  # in turns, since other programs come and go
        if number == 1:  # from then on the noise is there
            for count in counts.values():
                count.clear()
        for name, crew in crews.items():
            seconds[name].append(grade(crew, layout.size, batch, number))
    for name in crews:
        its = sorted(seconds[name][1:])
        line = f"{name:<12} {its[0]:5.2f} to {its[-1]:5.2f} s a generation"
        if name in counts:
            shared, orders, back = (n // GENERATIONS for n in counts[name].bytes)
            line += f"; out: {shared:,} bytes shared, {orders:,} in orders; back: {back:,}"
        print(line, flush=True)
    for crew in reversed(crews.values()):
        crew.close()
    ray.shutdown()


def grade(crew: Crew, size: int, batch: Batch, number: int) -> float:
    """Seconds of a generation."""
    centre_P, noise_P = normal(size, Key.of(0)) * 0.05, torch.full((size,), 0.01)
    population = Population(centre_P, noise_P, Key.of(number), POPULATION, True)
    begun = time.perf_counter()
    crew.rewards(Generation(population, None, batch, Key.of(number)), Stopwatch())
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
