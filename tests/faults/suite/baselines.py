"""What simpler comparisons say of the same evidence: settings alone, layers alone, losses alone.

Each is given its best chance: what it can see is compared exactly, or with the tolerance that is
usual for it, and where it names no cause by itself it says the one that is likeliest for such a
place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weft.diagnose.sides.evidence import Evidence
from weft.diagnose.sides.opening import open_evidence
from weft.runs.evidence import Settings

Answer = dict[str, Any]

NAMES = {  # a part of a setting's name, in the order in which a person would suspect it
    "rank": "rank",
    "alpha": "scale",
    "scale": "scale",
    "rslora": "scale",
    "init": "init",
    "noise": "init",
    "target": "attach-partial",
    "adapter": "checkpoint",
    "temperature": "sampler",
    "top_": "sampler",
    "penalty": "sampler",
    "max_tokens": "stop",
    "max_new": "stop",
    "stop": "stop",
    "eos": "stop",
    "template": "template",
    "chat": "template",
    "truncation": "truncation",
    "max_length": "truncation",
    "padding": "mask",
    "dropout": "mode",
    "boost": "schedule",
    "merge": "schedule",
    "train_on_prompt": "labels",
    "dtype": "precision",
    "base": "base",
    "model": "base",
    "data": "data",
    "seed": "seed",
    "batch_size": "normaliser",
    "lr": "optimiser",
}
COSMETIC = ("environment.", "name", "description", "command")
LAYERS = 1e-3
"""Relative difference of a hidden state above which layer diffs usually call it different."""
LOSSES = 1e-4


def settings_alone(a: Evidence, b: Evidence) -> Answer:
    """Declared values that differ; any of them is an alarm."""
    one, other = _declared(a), _declared(b)
    differing = [
        key
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key) and not key.startswith(COSMETIC)
    ]
    labels = [
        label
        for part, label in NAMES.items()
        if any(part in key.rpartition(".")[2] or part in key for key in differing)
    ]
    rest = ["settings"] if differing and not labels else []
    return _answer(bool(differing), [*dict.fromkeys(labels), *rest], rung=1)


def _declared(side: Evidence) -> dict[str, Any]:
    """What a script or a configuration says, and nothing that was only observed."""
    found = {
        key: value
        for event in side.of(Settings)
        for key, value in event.values.items()
        if event.origins.get(key) not in ("seen", "computed")
    }
    snapshot = side.used() or side.last()
    if snapshot is not None:
        found |= {f"adapter.{key}": value for key, value in snapshot.declared.items()}
    for generation in side.generations[:1]:
        if generation.driver == "generate":
            found |= {f"generation.{key}": value for key, value in generation.settings.items()}
    return found


def layers_alone(a: Evidence, b: Evidence) -> Answer:
    """The first hidden state of the first passes that differs."""
    for one, other in zip(a.passes[:8], b.passes[:8], strict=False):
        if one.hidden is None or other.hidden is None:
            continue
        h_LBD, g_LBD = a.array(one.hidden), b.array(other.hidden)
        if h_LBD.shape != g_LBD.shape:
            return _answer(True, ["tokens"], rung=6)
        size_L = np.linalg.norm(h_LBD.reshape(len(h_LBD), -1).astype(np.float64), axis=1)
        gap_L = (h_LBD.astype(np.float64) - g_LBD).reshape(len(h_LBD), -1)
        apart_L = ~(np.linalg.norm(gap_L, axis=1) <= LAYERS * size_L)
        if apart_L.any():
            first = int(apart_L.argmax())
            label = "tokens" if first == 0 else "scale"
            return _answer(True, [label], rung=6, place=f"model.layers.{max(0, first - 1)}")
    return _answer(False, [], rung=6)


def losses_alone(a: Evidence, b: Evidence) -> Answer:
    """The first step, or scored pass, whose loss differs."""
    one, other = _losses(a), _losses(b)
    for step, (x, y) in enumerate(zip(one, other, strict=False), 1):
        if not math.isclose(x, y, rel_tol=LOSSES):
            label = "data" if step == 1 else "init" if step == 2 else "schedule"
            return _answer(True, [label], rung=10, step=step)
    return _answer(len(one) != len(other), [], rung=10)


def _losses(side: Evidence) -> list[float]:
    steps = [step.loss for step in side.steps if step.loss is not None]
    return steps or [each.loss for each in side.passes if each.loss is not None]


def _answer(apart: bool, labels: list[str], **where: Any) -> Answer:
    causes = [
        {"label": label, "place": "", "step": None, "value": None, "confidence": "located", **where}
        for label in labels
    ]
    first = {"place": "", "step": None, **where} if apart else None
    return {
        "verdict": "different" if apart else "same",
        "causes": causes,
        "first_divergence": first,
    }


BASELINES: Mapping[str, Callable[[Evidence, Evidence], Answer]] = {
    "settings alone": settings_alone,
    "layers alone": layers_alone,
    "loss curves alone": losses_alone,
}


def baseline_answers(a: Path, b: Path) -> dict[str, Answer]:
    """What each baseline says of two bundles."""
    sides = open_evidence(str(a)), open_evidence(str(b))
    return {name: say(*sides) for name, say in BASELINES.items()}
