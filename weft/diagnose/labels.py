"""The causes that a diagnosis can name."""

from __future__ import annotations

from typing import Literal, get_args

Label = Literal[
    "scale", "scale-pattern", "init", "rank", "attach", "attach-partial", "key-map", "layout",
    "checkpoint", "double-apply", "tied", "base", "merge-precision", "tokens", "template", "data",
    "truncation", "tokenizer", "positions", "mask", "cache", "cache-pos", "mode", "sampler", "stop",
    "seed", "overflow", "trainable", "labels", "normaliser", "schedule", "order",
    "optimiser", "precision", "implementation", "settings", "unknown",
]  # fmt: skip

LABELS: tuple[Label, ...] = get_args(Label)
