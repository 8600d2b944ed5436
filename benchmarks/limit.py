"""What the machine could do at most: matrix products alone, each measured by itself."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.harness import Measurement

READINGS = 12


@dataclass(frozen=True)
class Product:
    """[rows, inputs] @ [inputs, outputs], so many times."""

    rows: int
    inputs: int
    outputs: int
    times: int = 1

    @property
    def flops(self) -> int:
        """Floating-point operations of all of them."""
        return 2 * self.rows * self.inputs * self.outputs * self.times


@dataclass(frozen=True)
class Limit:
    """What the products that a step cannot do without take, and nothing else."""

    what: str
    seconds: float
    flops: int

    @classmethod
    def of(cls, what: str, products: Iterable[Product], dtype: torch.dtype) -> Limit:
        """Measured here and now."""
        products = list(products)
        rates = {(p.rows, p.inputs, p.outputs): 0.0 for p in products}
        for shape in rates:
            rates[shape] = product_seconds(*shape, dtype)
        return cls(
            what,
            sum(p.times * rates[p.rows, p.inputs, p.outputs] for p in products),
            sum(p.flops for p in products),
        )

    def said_of(self, measurements: Sequence[Measurement]) -> str:
        """How near everyone comes to it."""
        shares = [f"{m.what} {self.seconds / m.step_seconds.median:.0%}" for m in measurements]
        rate = self.flops / self.seconds / 1e9
        return (
            f"{self.what}: {self.flops / 1e9:,.0f} GFLOP of products take {self.seconds:.2f} s "
            f"alone ({rate:.0f} GFLOP/s), which is of a step: {'; '.join(shares)}"
        )


@torch.inference_mode()
def product_seconds(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    """The best of several readings."""
    x, weight = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    readings = []
    for _ in range(READINGS):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        readings.append(time.perf_counter() - start)
    return min(readings)
