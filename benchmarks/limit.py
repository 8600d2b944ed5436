"""What the machine could do at most: products of matrices, and reading memory, each by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.device import CPU, Device
from benchmarks.harness import Measurement

READINGS = 3, 12
"""At least, at most."""
ENOUGH_SECONDS = 2.0
READ_BYTES = 2**28
"""More than caches hold."""


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
    """What a step cannot do without, and how long that takes alone."""

    what: str
    amount: int
    unit: str
    seconds: float
    contender: str | None = None
    """Whose it is; None: everyone's."""

    @classmethod
    def of(
        cls, what: str, products: Iterable[Product], dtype: torch.dtype, device: Device = CPU
    ) -> Limit:
        """Of products, measured here and now."""
        products = [p for p in products if p.flops]
        seconds = {(p.rows, p.inputs, p.outputs): 0.0 for p in products}
        for shape in seconds:
            seconds[shape] = product_seconds(*shape, dtype, device)
        return cls(
            f"products of {what}",
            sum(p.flops for p in products),
            "FLOP",
            sum(p.times * seconds[p.rows, p.inputs, p.outputs] for p in products),
        )

    @classmethod
    def of_reading(cls, what: str, count: int, device: Device = CPU) -> Limit:
        """Of so many bytes, at a rate that is measured here and now."""
        return cls(f"reading {what}", count, "B", count / bytes_a_second(device))

    def share(self, measured: Measurement) -> float:
        """Of a step: both are of one of mean length."""
        return self.seconds / measured.mean_step_seconds.median

    def said_of(self, measurements: Sequence[Measurement]) -> str:
        """How near everyone comes to it."""
        its = [m for m in measurements if self.contender in (None, m.contender)]
        shares = "; ".join(f"{m.what} {self.share(m):.0%}" for m in its)
        rate = self.amount / self.seconds / 1e9
        return (
            f"{self.what}: {_plain(self.amount / 1e9)} G{self.unit} take {self.seconds:.2g} s "
            f"alone ({rate:.3g} G{self.unit}/s), which is of a step: {shares}"
        )


@torch.inference_mode()
def product_seconds(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: Device = CPU
) -> float:
    """By whichever of PyTorch's products is the fastest for this shape."""
    x = torch.ones(rows, inputs, dtype=dtype, device=device.torch)
    weight = torch.ones(outputs, inputs, dtype=dtype, device=device.torch)
    ways: list[Callable[[], object]] = [lambda: torch.nn.functional.linear(x, weight)]
    onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if device.is_cpu and onednn:
        linear = torch.ops.mkldnn._linear_pointwise
        ways.append(lambda: linear(x, weight, None, "none", [], ""))
    return min(fastest(way, device) for way in ways)


@torch.inference_mode()
def bytes_a_second(device: Device = CPU) -> float:
    """Read over more than caches hold, by whichever of two operations reads faster."""
    one = torch.ones(READ_BYTES // 4, dtype=torch.float32, device=device.torch)
    half, other = one.chunk(2)
    return one.nbytes / min(fastest(one.sum, device), fastest(lambda: half.dot(other), device))


def fastest(call: Callable[[], object], device: Device = CPU) -> float:
    """Seconds of the best of several readings."""
    least, most = READINGS
    readings: list[float] = []
    while len(readings) < least or (len(readings) < most and sum(readings) < ENOUGH_SECONDS):
        readings.append(device.seconds(call))
    return min(readings)


def _plain(number: float) -> str:
    """Three digits, without powers of ten."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
