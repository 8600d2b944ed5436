"""What a recorder looks at: an explicit list, in the order in which they are told of an end.

A tap is a function `install(recorder) -> Undo`. It imports no library: it replaces functions of
libraries when the script imports them (`patching.when_imported`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from weft.diagnose.record import (
    adapters,
    checks,
    draws,
    files,
    generate,
    loops,
    merging,
    mlx,
    passes,
    seeds,
    tokenizers,
    trainers,
    training,
    weights,
)
from weft.diagnose.record.patching import Undo, together
from weft.diagnose.record.recorder import Recorder

Tap: TypeAlias = Callable[[Recorder], Undo]

TAPS: tuple[Tap, ...] = (
    seeds.install,
    files.install,
    tokenizers.install,
    draws.install,
    passes.install,
    loops.install,
    generate.install,
    training.install,
    trainers.install,
    merging.install,
    weights.install,
    adapters.install,
    checks.install,
    mlx.install,
)


def install(recorder: Recorder) -> Undo:
    """Install all taps."""
    return together([tap(recorder) for tap in TAPS])
