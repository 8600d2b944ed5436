"""What settings mean: which can matter, for what, and on which later rung they show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from weft.diagnose.labels import Label
from weft.diagnose.sides.evidence import Evidence, Pair

Weight = Literal["semantic", "numeric", "cosmetic"]
"""Another function or another course; the same but for rounding; names and bookkeeping."""

Seen = Callable[[Pair], bool]


@dataclass(frozen=True)
class Meaning:
    """Of one key, or of all below a prefix that ends in a dot."""

    key: str
    weight: Weight
    label: Label = "settings"
    swap: str | None = None  # the factor of a replica
    later: Seen | None = None
    """Whether a later, exact rung of this pair looks at what the key does."""


def _both(has: Callable[[Evidence], object]) -> Seen:
    return lambda pair: bool(has(pair.a)) and bool(has(pair.b))


def _ids(side: Evidence) -> bool:
    return any(each.ids is not None for each in side.passes)


_adapters = _both(lambda side: side.snapshots)
_weights = _both(lambda side: any(each.tensors for each in side.weights))
_texts = _both(_ids)
_said = _both(lambda side: side.generations)
_trained = _both(lambda side: side.steps)
_computed = _both(lambda side: side.passes or side.steps or side.generations)
_merges = _both(
    lambda side: any(each.what in ("merge", "commit", "reset") for each in side.happened)
)

MEANINGS: tuple[Meaning, ...] = (
    Meaning("name", "cosmetic"),
    Meaning("description", "cosmetic"),
    Meaning("checkpoint_every", "cosmetic"),
    Meaning("data.on_bad_row", "cosmetic"),
    Meaning("data.test_", "cosmetic"),
    Meaning("data.valid_", "cosmetic"),
    Meaning("eval.batch_size", "numeric"),
    Meaning("members_per_forward", "numeric"),
    Meaning("trunk_memory_mib", "cosmetic"),
    Meaning("micro_batch_size", "numeric"),
    Meaning("device", "numeric"),
    Meaning("environment.code", "cosmetic"),
    Meaning("environment.", "numeric"),
    Meaning("base", "semantic", "base", "base", _weights),
    Meaning("dtype", "semantic", "precision", "dtype", _weights),
    Meaning("adapter.rank", "semantic", "rank", "adapter", _adapters),
    Meaning("adapter.targets", "semantic", "attach-partial", "attach", _adapters),
    Meaning("adapter.layers", "semantic", "attach-partial", "attach", _adapters),
    Meaning("adapter.init", "semantic", "init", "init", _adapters),
    Meaning("adapter.factors", "semantic", "trainable", "trainable", _adapters),
    Meaning("adapter.dropout", "semantic", "settings", None, _adapters),
    Meaning("adapter.", "semantic", "scale", "scale", _adapters),
    Meaning("data.max_length", "semantic", "truncation", "ids", _texts),
    Meaning("data.chat", "semantic", "template", "prompt", _texts),
    Meaning("data.verbalizers", "semantic", "template", "prompt", _texts),
    Meaning("data.format", "semantic", "template", "prompt", _texts),
    Meaning("data.append_eos", "semantic", "labels", "labels", _texts),
    Meaning("data.train_on_prompt", "semantic", "labels", "labels", _texts),
    Meaning("data.pad_target", "semantic", "labels", "labels", _texts),
    Meaning("data.", "semantic", "data", "prompt"),
    Meaning("optimiser.groups", "cosmetic"),
    Meaning("optimiser.tensors", "semantic", "trainable", "trainable", _adapters),
    Meaning("optimiser.schedule", "semantic", "schedule", "optimiser"),
    Meaning("optimiser.warmup", "semantic", "schedule", "optimiser"),
    Meaning("optimiser.", "semantic", "optimiser", "optimiser"),
    Meaning("boost.", "semantic", "schedule", "schedule", _merges),
    Meaning("steps", "semantic", "schedule", "schedule"),
    Meaning("epochs", "semantic", "schedule", "schedule"),
    Meaning("keep", "semantic", "checkpoint", None),
    Meaning("start", "semantic", "checkpoint", "adapter"),
    Meaning("eval.", "cosmetic"),
    Meaning("seed", "semantic", "seed", "seed", _computed),
    Meaning("seeds", "semantic", "seed", "seed", _computed),
    Meaning("method.noise.init_scale", "semantic", "init", "init"),
    Meaning("objective.", "semantic", "normaliser", "normaliser"),
    Meaning("generation.max_tokens", "semantic", "stop", "stop", _said),
    Meaning("generation.stop", "semantic", "stop", "stop", _said),
    Meaning("generation.eos", "semantic", "stop", "stop", _said),
    Meaning("generation.ignore_eos", "semantic", "stop", "stop", _said),
    Meaning("generation.", "semantic", "sampler", "sampler", _said),
    Meaning("engine.", "semantic", "implementation"),
    Meaning("", "semantic"),
)
"""The first that fits counts; a key fits what is the same, or what it begins with where that ends
in a dot or an underscore, or is one of several settings of one thing."""


def meaning(key: str) -> Meaning:
    """What a key is about."""
    return next(each for each in MEANINGS if _fits(key, each.key))


def _fits(key: str, known: str) -> bool:
    return key == known or (
        key.startswith(known)
        and (not known or known[-1] in "._" or ("." in known and key[len(known)] in "_."))
    )
