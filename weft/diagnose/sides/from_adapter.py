"""An adapter's files as evidence: its factors, and what they were made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weft.core.errors import InputError
from weft.diagnose.sides.evidence import Evidence
from weft.formats.factors import FactorFile, read_factors
from weft.runs.adapters import module_seen
from weft.runs.evidence import Settings, Snapshot

LACKS = "files of adapters hold no text, no tokens, no weights of the base and no outputs"

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
        name: module_seen(
            pair.a_rI,
            pair.b_Or,
            pair.scale,
            f"{prefix}/{name}",
            alpha=pair.alpha,
            dropout=read.dropout,
        )
        for name, pair in read.sites.items()
    }
    made: dict[str, Any] = {"model": "model-0", "when": when, "step": step, "style": read.format}
    load = str(read.path if read.format == "npz" else read.path.parent)
    return Snapshot(**made, modules=modules, declared=dict(read.config), load=load), array


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
