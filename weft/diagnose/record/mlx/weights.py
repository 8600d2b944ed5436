"""Weights and adapters of an MLX model as evidence, under the names that transformers has.

Shapes: I in, O out, R rank, K probes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from weft.diagnose.record.mlx.watched import numbers
from weft.runs.evidence import AdapterModule, Snapshot, TensorSeen, Weights
from weft.runs.sketch import digest, digest_of, probes

FACTORS = ("lora_a", "lora_b")


def weights_of(key: str, model: Any, load: str | None) -> tuple[Weights, dict[str, np.ndarray]]:
    """The base below the adapters, with a sketch of every adapted module."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    tensors, dtypes = {}, set()
    for name, tensor in tree_flatten(model.parameters()):
        if name.rpartition(".")[2] in FACTORS:
            continue
        wide = numbers(tensor)
        assert wide is not None
        raw = np.array(tensor.view(mx.uint16)) if tensor.dtype == mx.bfloat16 else wide
        dtype = str(tensor.dtype).rpartition(".")[2]
        dtypes.add(dtype)
        norm = float(np.linalg.norm(wide.astype(np.float64)))
        plain = name.replace(".linear.", ".").replace(".embedding.", ".")
        tensors[plain] = TensorSeen(
            shape=tuple(tensor.shape),
            dtype=dtype,
            digest=digest_of(dtype, tuple(tensor.shape), raw.tobytes()),
            norm=norm,
        )
    arrays = {f"sketch {name}": _base_sketch(module) for name, module in adapted(model).items()}
    event = Weights(
        model=key,
        name=load or type(model).__name__,
        load=load,
        architecture=f"{type(model).__module__.rpartition('.')[2]}.{type(model).__name__}",
        dtype=", ".join(sorted(dtypes)),
        attention="mlx",
        tensors=tensors,
        sketches={name.removeprefix("sketch "): name for name in arrays},
    )
    return event, arrays


def adapted(model: Any) -> dict[str, Any]:
    """Modules with an adapter, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if all(factor in module for factor in FACTORS) and "linear" in module
    }


def snapshot_of(
    key: str, model: Any, load: str | None, when: Any
) -> tuple[Snapshot, dict[str, np.ndarray]] | None:
    """The adapter of a model; None where it has none."""
    modules, arrays = {}, dict[str, np.ndarray]()
    for name, module in adapted(model).items():
        modules[name], its = _adapter(name, module)
        arrays |= its
    if not modules:
        return None
    snapshot = Snapshot(model=key, when=when, style="mlx", modules=modules, load=load)
    return snapshot, arrays


def _adapter(name: str, module: Any) -> tuple[AdapterModule, dict[str, np.ndarray]]:
    a_IR, b_RO = (np.asarray(numbers(module[factor]), np.float32) for factor in FACTORS)
    a_RI, b_OR = np.ascontiguousarray(a_IR.T), np.ascontiguousarray(b_RO.T)
    seen, unexplained = _seen_scale(module, a_RI, b_OR)
    scale = float(module.scale)
    size = float(np.linalg.norm(np.linalg.qr(b_OR)[1] @ np.linalg.qr(a_RI.T)[1].T))
    facts = AdapterModule(
        rank=a_RI.shape[0],
        shape=(b_OR.shape[0], a_RI.shape[1]),
        scale=scale,
        seen_scale=seen,
        unexplained=unexplained,
        dropout=1 - float(getattr(module.dropout, "_p_1", 1.0)),
        norm_a=float(np.linalg.norm(a_RI)),
        norm_b=float(np.linalg.norm(b_OR)),
        norm_update=abs(scale if seen is None else seen) * size,
        digest_a=digest(a_RI),
        digest_b=digest(b_OR),
        a=f"a {name}",
        b=f"b {name}",
    )
    return facts, {f"a {name}": a_RI, f"b {name}": b_OR}


def _seen_scale(
    module: Any, a_RI: np.ndarray, b_OR: np.ndarray
) -> tuple[float | None, float | None]:
    """What the module adds to its base, as a multiple of B @ A, and what is left of it then."""
    import mlx.core as mx

    if module.training and getattr(module.dropout, "_p_1", 1.0) < 1:
        return None, None  # its dropout would draw
    x_KI = mx.array(probes(a_RI.shape[1]).T)
    added = numbers(module(x_KI) - module.linear(x_KI))
    product = (probes(a_RI.shape[1]).T @ a_RI.T) @ b_OR.T
    size = float((product.astype(np.float64) ** 2).sum())
    if added is None or size == 0:
        return None, None
    scale = float((added.astype(np.float64) * product).sum()) / size
    left = float(np.linalg.norm(added - scale * product))
    return scale, left / max(float(np.linalg.norm(added)), 1e-30)


def _base_sketch(module: Any) -> np.ndarray:
    """[O, K]: what the module below an adapter makes of the probes, without its bias."""
    import mlx.core as mx

    size = module["lora_a"].shape[0]
    x_KI = mx.array(probes(size).T)
    made = module.linear(x_KI)
    if "bias" in module.linear:
        made = made - module.linear.bias
    found = numbers(made.astype(mx.float32))
    assert found is not None
    return np.ascontiguousarray(found.T)
