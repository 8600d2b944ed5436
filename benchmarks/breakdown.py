"""Where the time of a step goes, by kind of work.

Every operation that PyTorch's profiler saw counts with its own time, without its callees: on a GPU
the time of its kernels. What is left of the wall clock is Python, NumPy's random numbers, and a GPU
that waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.device import CPU, STEP, Device
from benchmarks.harness import Contender
from weft.core.batch import Batch

KINDS: dict[str, tuple[str, ...]] = {
    "attention": ("scaled_dot_product", "_softmax"),
    "dropout and random numbers": ("dropout", "bernoulli", "uniform", "random"),
    "optimiser and clipping": ("_fused_adam", "_foreach", "linalg_vector_norm", "lerp", "addcmul"),
    "matrix products": ("mm", "::matmul", "linear"),
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


def seconds_by_kind(
    contender: Contender,
    warm_up: Sequence[Batch],
    batches: Sequence[Batch],
    vocabulary: int,
    device: Device = CPU,
) -> dict[str, float]:
    """Seconds of the steps on `batches`, after those on `warm_up`."""
    run, first = contender.build(), len(warm_up)
    activities = [ProfilerActivity.CPU, *([] if device.is_cpu else [ProfilerActivity.CUDA])]
    with profile(activities=activities, record_shapes=True) as profiler:
        trace = run([*warm_up, *batches])
    seconds = dict.fromkeys([LOSS, *KINDS, OTHER, OUTSIDE], 0.0)
    events = [e for e in profiler.events() if e.device_type == DeviceType.CPU]  # not kernels' own
    steps = [e for e in events if e.name.startswith(STEP) and int(e.name[len(STEP) :]) >= first]
    spans = [(e.time_range.start, e.time_range.end) for e in steps]
    for event in events:
        if event.name.startswith(STEP):
            continue
        if any(start <= event.time_range.start < end for start, end in spans):
            own = event.self_cpu_time_total if device.is_cpu else event.self_device_time_total
            seconds[kind_of(event.name, event.input_shapes, vocabulary)] += own / 1e6
    seconds[OUTSIDE] = max(0.0, sum(trace.seconds[first:]) - sum(seconds.values()))
    return seconds
