"""Where the time of a step goes, by kind of work.

Every operation that PyTorch's profiler saw counts with its own time, without its callees: on a GPU
the time of its kernels. What touches the vocabulary is head and loss, and so is all that it calls,
or that a loss calls: some contenders cut the vocabulary into parts. What is left of the wall clock
is Python, NumPy's random numbers, and a GPU that waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
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
LOSSES = ("HeadNLL", "LogProb", "nll_loss", "log_softmax")
"""Weft's, TRL's, PyTorch's; their backward has the same word in its name."""
OTHER = "other operations"


def kind_of(event: FunctionEvent, vocabulary: int) -> str:
    """The kind of work of one operation, on its own and as a part of what called it."""
    caller: FunctionEvent | None = event
    while caller is not None:
        if _is_loss(caller.name, caller.input_shapes or (), vocabulary):
            return LOSS
        caller = caller.cpu_parent
    kinds = (kind for kind, parts in KINDS.items() if any(part in event.name for part in parts))
    return next(kinds, OTHER)


def _is_loss(name: str, shapes: Sequence[object], vocabulary: int) -> bool:
    sizes = [size for shape in shapes if isinstance(shape, list) for size in shape]
    return vocabulary in sizes or any(word in name for word in LOSSES)


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
            seconds[kind_of(event, vocabulary)] += own / 1e6
    seconds[OUTSIDE] = max(0.0, sum(trace.seconds[first:]) - sum(seconds.values()))
    return seconds
