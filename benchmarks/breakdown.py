"""Where the time of a step goes, by kind of work.

Every operation that PyTorch's profiler saw counts with its own time, without its callees. Time
outside PyTorch (Python, NumPy's random numbers) is the difference to the wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import Contender
from weft.core.batch import Batch

KINDS: dict[str, tuple[str, ...]] = {
    "attention": ("scaled_dot_product", "_softmax"),
    "dropout and random numbers": ("dropout", "bernoulli", "uniform", "random"),
    "optimiser and clipping": ("_fused_adam", "_foreach", "linalg_vector_norm", "lerp", "addcmul"),
    "matrix products": ("::mm", "::addmm", "::bmm", "::baddbmm", "::matmul", "::linear"),
    "layer norm": ("layer_norm",),
    "elementwise": ("::mul", "::add", "::div", "::sub", "::pow", "tanh", "gelu", "::exp"),
    "copies and joins": ("copy", "::cat", "::fill", "::zero", "clone", "contiguous", "index"),
}
OUTSIDE = "outside PyTorch"
LOSS = "output head and loss"
OTHER = "other operations"


def kind_of(name: str, shapes: Sequence[object], vocabulary: int) -> str:
    """The kind of work of one operation; whatever touches the vocabulary is head and loss."""
    sizes = [size for shape in shapes if isinstance(shape, list) for size in shape]
    if vocabulary in sizes or "HeadNLL" in name or "nll_loss" in name or "log_softmax" in name:
        return LOSS
    kinds = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
    return next(kinds, OTHER)


def seconds_by_kind(contender: Contender, batch: Batch, vocabulary: int) -> dict[str, float]:
    """Seconds of one step on `batch`, after a step that warms up."""
    run = contender.build()
    run([batch])
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        start = time.perf_counter()
        run([batch])
        wall = time.perf_counter() - start
    seconds = dict.fromkeys([LOSS, *KINDS, OTHER, OUTSIDE], 0.0)
    for event in profiler.key_averages(group_by_input_shape=True):
        kind = kind_of(event.key, event.input_shapes, vocabulary)
        seconds[kind] += event.self_cpu_time_total / 1e6
    seconds[OUTSIDE] = max(0.0, wall - sum(seconds.values()))
    return seconds


def show(columns: dict[str, dict[str, float]], console: Console) -> None:
    """One column a contender, one row a kind of work."""
    title = "seconds of one step, by kind of work"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for kind in next(iter(columns.values())):
        table.add_row(kind, *(f"{column[kind]:.3f}" for column in columns.values()))
    table.add_section()
    table.add_row("all", *(f"{sum(column.values()):.3f}" for column in columns.values()))
    console.print(table)
