"""From what was recorded to replicas: the same rows of both sides, and what could not be built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.diagnose.proof.fed import Seen, context, matched_places, ruled
from weft.diagnose.proof.replica import (
    BaseValue,
    Replica,
    Row,
    Sampler,
    Stop,
    Update,
    Updates,
)
from weft.diagnose.proof.schooling import course_of
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.runs.evidence import AdapterModule, Event, Pass, Snapshot, TrainStep, Weights

DRAWN = 12
"""Length of drawn texts, where a pair has no prompts."""


@dataclass(frozen=True, eq=False)
class Built:
    """Both replicas, row by row of the same prompts, and what was recorded of these rows."""

    a: Replica
    b: Replica
    seen_a: tuple[Seen, ...]
    seen_b: tuple[Seen, ...]
    drawn: bool = False  # rows were drawn: the sides have none
    not_checked: tuple[str, ...] = ()


def build(pair: Pair, *, seed: int = 0) -> Built:
    """Replicas of both sides."""
    places, notes = matched_places(pair)
    firsts = (
        [a.of for a, _ in places] or _lone(pair.a),
        [b.of for _, b in places] or _lone(pair.b),
    )
    made = []
    for n, (name, side) in enumerate(pair.sides):
        mine = [each[n] for each in places]
        first = firsts[n][0] if firsts[n] else None
        model = first.model if first is not None else _model_of(side)
        replica = Replica(
            name,
            base_of(side, model, first),
            updates_of(side, snapshot_at(side, model, first)),
            ruled([each.row for each in mine]),
            context(side, [each for each in mine if each.generation is not None]),
            course=course_of(side),
            dropping=any(each.of.training and each.of.dropouts > 0 for each in mine),
        )
        said = next((each.generation for each in mine if each.generation is not None), None)
        if said is not None:
            replica = replica.with_(
                sampler=_sampler(said.settings), stop=_stop(said.settings), seed=_seed(side)
            )
        made.append(replica)
    a, b = made
    if not places:
        rows = _drawn(a.base, b.base, seed)
        a, b = a.with_(rows=rows), b.with_(rows=rows)
    seen = [tuple(each[n].seen for each in places) or (Seen(),) * len(a.rows) for n in (0, 1)]
    return Built(a, b, seen[0], seen[1], not places, tuple(notes))


def _lone(side: Evidence) -> list[Pass]:
    """The pass before which a side without prompts is looked at: its training begins there."""
    reads = [each for each in side.passes if not each.grad and each.phase != "train"]
    return reads[:1] or list(side.passes[:1])


def base_of(side: Evidence, model: str | None, before: Event | None) -> BaseValue:
    """The base at the moment of an event: as first used, with all that changed until then."""
    events = side.events if before is None else side.events[: _at(side, before)]
    seen = [e for e in events if isinstance(e, Weights) and model in (None, e.model)]
    seen = seen or [each for each in side.weights if model in (None, each.model)][:1]
    if not seen:
        return BaseValue(_named(side))
    changed: dict[str, np.ndarray] = {}
    digests: dict[str, str] = {}
    for each in seen:
        changed |= {name: side.array(array) for name, array in each.changed.items()}
        digests |= {name: tensor.digest for name, tensor in each.tensors.items()}
    first = seen[0]
    return BaseValue(
        _found(side, first.load) or _named(side), seen[-1].dtype or "float32", first.attention,
        changed, first.config, digests,
    )  # fmt: skip


def _found(side: Evidence, ref: str | None) -> str | None:
    """Where a base lies that a script named from its own directory."""
    if ref is None or Path(ref).is_dir():
        return ref
    above = side.path.resolve().parents
    beside = next((each / ref for each in above if (each / ref / "config.json").is_file()), None)
    return str(beside) if beside is not None else ref


def _named(side: Evidence) -> str | None:
    for key in ("base", "model.base"):
        if key in side.settings and isinstance(side.settings[key].value, str):
            return str(side.settings[key].value)
    return None


def _model_of(side: Evidence) -> str | None:
    return side.weights[0].model if side.weights else None


def snapshot_at(side: Evidence, model: str | None, before: Event | None) -> Snapshot | None:
    """The adapter of a model at the moment of an event, as near as it was seen."""
    mine = [each for each in side.snapshots if model in (None, each.model)]
    if before is None:
        return mine[-1] if mine else None
    at = _at(side, before)
    steps = sum(isinstance(each, TrainStep) for each in side.events[:at])
    order = {id(event): n for n, event in enumerate(side.events)}
    earlier = [each for each in mine if order[id(each)] < at]
    if earlier and _steps(earlier[-1]) == steps:
        return earlier[-1]
    same = [each for each in mine if _steps(each) == steps]
    ending = [each for each in mine if each.when == "end"]
    last = ending if steps == len(side.steps) else []
    near = same or last or earlier[-1:]
    return near[0] if near else None


def _at(side: Evidence, event: Event) -> int:
    return next(n for n, each in enumerate(side.events) if each is event)


def _steps(snapshot: Snapshot) -> int:
    return snapshot.step or 0


def updates_of(side: Evidence, snapshot: Snapshot | None) -> Updates:
    """What an adapter adds, with the scale that its modules were seen to have."""
    if snapshot is None:
        return {}
    found = {}
    for name, module in snapshot.modules.items():
        if module.a is None or module.b is None:
            continue
        a_RI, b_OR = (np.asarray(side.array(each), np.float32) for each in (module.a, module.b))
        found[name] = Update(a_RI, b_OR, _scale(module), module.dropout, module.trainable)
    return found


def _scale(module: AdapterModule) -> float:
    """What multiplies B A beside the base: nothing where it is in the base's weights."""
    if module.merged:
        return 0.0
    if module.seen_scale is not None:
        return module.seen_scale
    declared = 1.0 if module.scale is None else module.scale
    return declared if module.active else 0.0


def _sampler(settings: Mapping[str, Any]) -> Sampler | None:
    """What chose tokens, as far as it was resolved; None where nothing is known."""
    known = ("greedy", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    if not any(settings.get(key) is not None for key in known):
        return None
    temperature = settings.get("temperature")
    greedy = settings.get("greedy")
    return Sampler(
        bool(greedy) if greedy is not None else temperature in (0, 0.0),
        1.0 if temperature is None else float(temperature),
        settings.get("top_k") or None,
        settings.get("top_p"),
        settings.get("min_p"),
        float(settings.get("repetition_penalty") or 1.0),
    )


def _stop(settings: Mapping[str, Any]) -> Stop | None:
    if not any(settings.get(key) is not None for key in ("max_tokens", "eos", "stop")):
        return None
    eos, strings = settings.get("eos"), settings.get("stop")
    return Stop(settings.get("max_tokens"), _tuple(eos), tuple(map(str, _tuple(strings))))


def _tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def _seed(side: Evidence) -> int | None:
    seeded = [each.seed for each in side.seeds if each.library in ("torch", "weft", "mlx")]
    if seeded:
        return seeded[-1]
    value = side.settings["seed"].value if "seed" in side.settings else None
    return value if isinstance(value, int) else None


def _drawn(a: BaseValue, b: BaseValue, seed: int) -> tuple[Row, ...]:
    """Texts of random tokens, for sides that read none, such as adapters on disk."""
    from weft.model.base import load_config

    ref = a.load or b.load
    if ref is None:
        return ()
    try:
        size = int(load_config(ref).get_text_config().vocab_size)
    except InputError:
        return ()
    drawn = Key.of(seed).fold("proof").numpy().integers(0, size, (8, DRAWN))
    return tuple(Row(tuple(int(i) for i in ids)) for ids in drawn)
