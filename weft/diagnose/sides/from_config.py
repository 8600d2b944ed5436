"""A configuration as evidence: what a run of it would use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from weft.core.errors import InputError
from weft.diagnose.sides.evidence import Evidence
from weft.runs.evidence import Settings
from weft.training.config import RunConfig
from weft.training.draft import pairs
from weft.training.resolve import find, resolve

COMPUTED = "computed"
"""The origin of what follows from other values."""

LACKS = "configurations have computed nothing: no data was read, and no weights were loaded"


def config_evidence(ref: str) -> Evidence:
    """A recipe or a YAML file, resolved as `weft train` would; `InputError` for all wrong in it."""
    resolved = resolve(ref)
    settings = settings_of(resolved.config, resolved.origins)
    about = {"source": "weft", "name": resolved.name, "notices": resolved.notices}
    return Evidence(ref, "config", find(ref), (settings,), _no_array, about, (LACKS,))


def settings_of(
    config: RunConfig, origins: Mapping[str, str], more: Mapping[str, Any] | None = None
) -> Settings:
    """The leaves of a configuration, and the alpha and scale that follow from what it says."""
    values = dict(pairs(config.model_dump(mode="json")))
    known = {key: origins.get(key, "default") for key in values}
    adapter = config.adapter
    follow = {"adapter.alpha": adapter.effective_alpha, "adapter.scale": adapter.effective_scale}
    for key, value in follow.items():
        if values.get(key) is None:
            values[key], known[key] = value, COMPUTED
    facts = dict(more or {})
    return Settings(values={**values, **facts}, origins={**known, **dict.fromkeys(facts, "seen")})


def _no_array(name: str) -> np.ndarray:
    raise InputError(f"there is no array {name}: a configuration has none")
