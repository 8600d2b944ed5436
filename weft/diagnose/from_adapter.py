"""An adapter's files as evidence: its factors, and what they were made for.

Shapes: r rank, I inputs and O outputs of a module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weft.core.errors import InputError
from weft.diagnose.evidence import Evidence
from weft.formats.factors import FactorFile, Pair, read_factors
from weft.runs.evidence import AdapterModule, Settings, Snapshot
from weft.runs.sketch import digest

LACKS = "an adapter's files alone: no text, no tokens, no weights of the base and no outputs"

Arrays = Callable[[str], np.ndarray]


def adapter_evidence(ref: str, path: Path, base: str | None = None) -> Evidence:
    """An adapter in any format. Raises `InputError` for one that no format's reader takes."""
    read = read_factors(path)
    snapshot, array = snapshot_of(read)
    about = {"source": "weft", "format": read.format, "scale_from": read.scale_from}
    events = (_settings(read, base), snapshot)
    return Evidence(ref, "adapter", path, events, array, about, (LACKS,))


def snapshot_of(
    read: FactorFile, when: str = "end", step: int | None = None, prefix: str = "adapter"
) -> tuple[Snapshot, Arrays]:
    """What the files hold, and its arrays by the names that the snapshot gives them."""
    arrays = {
        f"{prefix}/{name}.{factor}": values
        for name, pair in read.sites.items()
        for factor, values in (("a", pair.a_rI), ("b", pair.b_Or))
    }

    def array(name: str) -> np.ndarray:
        if name not in arrays:
            raise InputError(f"{read.path} holds no array {name}")
        return arrays[name]

    modules = {
        name: _module(pair, read.dropout, f"{prefix}/{name}") for name, pair in read.sites.items()
    }
    made: dict[str, Any] = {"model": "model-0", "when": when, "step": step, "style": read.format}
    load = str(read.path if read.format == "npz" else read.path.parent)
    return Snapshot(**made, modules=modules, declared=dict(read.config), load=load), array


def _module(pair: Pair, dropout: float, name: str) -> AdapterModule:
    return AdapterModule(
        rank=pair.rank,
        shape=(len(pair.b_Or), pair.a_rI.shape[1]),
        alpha=pair.alpha,
        scale=pair.scale,
        dropout=dropout,
        norm_a=_norm(pair.a_rI),
        norm_b=_norm(pair.b_Or),
        norm_update=abs(pair.scale) * norm_of_product(pair.a_rI, pair.b_Or),
        digest_a=digest(pair.a_rI.astype(np.float32)),
        digest_b=digest(pair.b_Or.astype(np.float32)),
        a=f"{name}.a",
        b=f"{name}.b",
    )


def norm_of_product(a_rI: np.ndarray, b_Or: np.ndarray) -> float:
    """Frobenius norm of B @ A, which is not formed: its square is tr((B^T B)(A A^T))."""
    a_rI, b_Or = a_rI.astype(np.float64), b_Or.astype(np.float64)
    square = float(np.sum((b_Or.T @ b_Or) * (a_rI @ a_rI.T)))
    return math.sqrt(max(square, 0.0)) if not math.isnan(square) else math.nan


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array.astype(np.float64)))


def _settings(read: FactorFile, base: str | None) -> Settings:
    """What is the same at every module, as a configuration of Weft would say it."""
    pairs = read.sites.values()
    found: Mapping[str, set[Any]] = {
        "adapter.rank": {pair.rank for pair in pairs},
        "adapter.alpha": {pair.alpha for pair in pairs},
        "adapter.scale": {pair.scale for pair in pairs},
    }
    values = {key: next(iter(each)) for key, each in found.items() if len(each) == 1}
    values["adapter.targets"] = sorted({name.rpartition(".")[2] for name in read.sites})
    values["adapter.dropout"] = read.dropout
    origins = dict.fromkeys(values, f"file {read.path.name}")
    origins["adapter.scale"] = read.scale_from
    if base is not None or read.base_ref is not None:
        values["base"] = base or read.base_ref
        origins["base"] = "command line" if base else "file adapter_config.json"
    return Settings(
        values={key: value for key, value in values.items() if value is not None},
        origins={key: origin for key, origin in origins.items() if values.get(key) is not None},
    )
