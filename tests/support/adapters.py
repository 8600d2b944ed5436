"""Hand-built adapters and bases of a few linear modules, as a recorder would have seen them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.support.evidence import Side
from weft.core.keys import Key
from weft.runs.evidence import AdapterModule, Snapshot, TensorSeen, Weights
from weft.runs.sketch import digest, probes

NAMES = tuple(
    f"model.layers.{layer}.{part}"
    for layer in range(3)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
)
OUT, IN = 24, 16


@dataclass(frozen=True, eq=False)
class Lora:
    """An adapter at one module and how it is applied."""

    a: np.ndarray
    b: np.ndarray
    scale: float = 2.0
    alpha: float | None = None
    seen: float | None = None  # measured scale
    active: bool = True
    merged: bool = False
    trainable: bool = True
    dropout: float = 0.0
    unexplained: float | None = None

    @property
    def delta(self) -> np.ndarray:
        return self.scale * self.b @ self.a

    def but(self, **changes: Any) -> Lora:
        return replace(self, **changes)


def draw(name: str, rank: int = 4, seed: int = 0, size: float = 0.05) -> Lora:
    """Random factors of a module."""
    random = Key.of(seed).fold(name).numpy()
    a = random.standard_normal((rank, IN)) * size
    b = random.standard_normal((OUT, rank)) * size
    return Lora(a.astype(np.float32), b.astype(np.float32), alpha=2.0 * rank)


def adapter(rank: int = 4, seed: int = 0) -> dict[str, Lora]:
    """At all modules."""
    return {name: draw(name, rank, seed) for name in NAMES}


def base(seed: int = 0, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Base weights of all modules and of a head."""
    random = Key.of(seed).fold("base").numpy()
    found = {name: random.standard_normal((OUT, IN)) / 4 for name in (*NAMES, "lm_head")}
    return {name: rounded(weight, dtype) for name, weight in found.items()}


def rounded(weight: np.ndarray, dtype: str) -> np.ndarray:
    """To the nearest number of a dtype, in float32 (bfloat16: the upper half of its bits)."""
    exact = weight.astype(np.float32)
    if dtype == "float32":
        return exact
    if dtype == "float16":
        return exact.astype(np.float16).astype(np.float32)
    bits = exact.view(np.uint32).astype(np.uint64)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return kept.astype(np.uint32).view(np.float32)


def weighted(
    side: Side,
    weights: Mapping[str, np.ndarray],
    *,
    dtype: str = "float32",
    tied: tuple[tuple[str, ...], ...] = (),
    **fields: Any,
) -> Side:
    """Add a `Weights` event."""
    prefix = f"base{len(side.events)}"
    names = {}
    for name, weight in weights.items():
        if name != "lm_head":
            names[name] = f"{prefix}/{name}"
            side.arrays[names[name]] = (weight @ probes(weight.shape[1])).astype(np.float32)
    tensors = {
        f"{name}.weight": TensorSeen(
            shape=weight.shape,
            dtype=dtype,
            digest=digest(weight.astype(np.float16) if dtype == "float16" else weight),
            norm=float(np.linalg.norm(weight)),
        )
        for name, weight in weights.items()
    }
    return side.add(
        Weights(
            model="model-0", name="base", dtype=dtype, tensors=tensors, tied=tied, sketches=names,
            **fields,
        )
    )  # fmt: skip


def adapted(
    side: Side,
    modules: Mapping[str, Lora],
    *,
    when: str = "use",
    step: int | None = None,
    trainable: int = 0,
    **fields: Any,
) -> Side:
    """Add a `Snapshot` event."""
    prefix = f"adapter{len(side.events)}"
    seen = {}
    for name, lora in modules.items():
        names = {part: f"{prefix}/{name}.{part}" for part in "ab"}
        side.arrays[names["a"]], side.arrays[names["b"]] = lora.a, lora.b
        scale = lora.scale if lora.seen is None else lora.seen
        seen[name] = AdapterModule(
            rank=lora.a.shape[0],
            shape=(lora.b.shape[0], lora.a.shape[1]),
            alpha=lora.alpha,
            scale=lora.scale,
            seen_scale=lora.seen,
            unexplained=lora.unexplained,
            dropout=lora.dropout,
            active=lora.active,
            merged=lora.merged,
            trainable=lora.trainable,
            norm_a=float(np.linalg.norm(lora.a)),
            norm_b=float(np.linalg.norm(lora.b)),
            norm_update=float(abs(scale) * np.linalg.norm(lora.b @ lora.a)),
            digest_a=digest(lora.a),
            digest_b=digest(lora.b),
            **names,
        )
    return side.add(
        Snapshot(
            model="model-0", when=when, step=step, style="peft", modules=seen,
            trainable={"adapter": trainable, "base": 0}, **fields,
        )
    )  # fmt: skip
