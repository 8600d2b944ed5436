"""From recorded training steps to a course that can be taken again.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from weft.diagnose.proof.replica import Course, Lesson, Micro, Optimiser, Turn, Update, Updates
from weft.diagnose.sides.evidence import Evidence
from weft.runs.evidence import Happened, Pass, Snapshot, TrainStep, Weights

IGNORE = -100
TURNS = ("merge", "reset", "commit")


def course_of(side: Evidence) -> Course | None:
    """Its training as far as batches and labels were recorded; None where none was.

    Only steps along a gradient can be taken again so.
    """
    method = side.settings["method.name"].value if "method.name" in side.settings else "backprop"
    if method != "backprop":
        return None
    steps = _last_of_each(side.steps)
    by_index = {each.index: each for each in side.passes}
    lessons = []
    for number in range(1, max(steps, default=0) + 1):
        step = steps.get(number)
        if step is None:
            break
        micros = _micros(side, step, by_index)
        if not micros:
            break
        lessons.append(Lesson(micros, step.lr[0] if step.lr else 0.0, step.loss))
    first = next((each for each in side.snapshots if not each.step), None)
    if not lessons or first is None:
        return None
    start = factors_of(side, first)
    return Course(
        start,
        tuple(lessons),
        optimiser=optimiser_of({key: each.value for key, each in side.settings.items()}),
        trains_adapter=any(each.trainable for each in first.modules.values()),
        trains_base=_base_moves(side),
        turns=_turns(side),
        reached={
            each.step: factors_of(side, each)
            for each in side.snapshots
            if each.step and each.when in ("step", "end")
        },
    )


def factors_of(side: Evidence, snapshot: Snapshot) -> Updates:
    """The factors of an adapter that is training, with the scale that it acts with."""
    found = {}
    for name, module in snapshot.modules.items():
        if module.a is None or module.b is None:
            continue
        a_RI, b_OR = (np.asarray(side.array(each), np.float32) for each in (module.a, module.b))
        scale = module.seen_scale if module.seen_scale is not None else module.scale
        if module.seen_scale == 0 and not b_OR.any():
            scale = module.scale  # nothing can be measured of a B that is zero
        scale = 1.0 if scale is None else scale
        found[name] = Update(a_RI, b_OR, scale, module.dropout, module.trainable)
    return found


def _last_of_each(steps: tuple[TrainStep, ...]) -> dict[int, TrainStep]:
    return {each.step: each for each in steps}


def _micros(side: Evidence, step: TrainStep, passes: Mapping[int, Pass]) -> tuple[Micro, ...]:
    found = []
    seen = [passes[index] for index in step.passes if index in passes]
    for n, each in enumerate(seen):
        if each.ids is None:
            return ()
        ids_BT = side.array(each.ids)
        mask_BT = None if each.mask is None else side.array(each.mask)
        if each.labels is not None:
            labels_BT = side.array(each.labels)
        else:  # the script made its loss itself; if nobody saw of what: of every next token
            hidden = np.zeros_like(ids_BT, bool) if mask_BT is None else mask_BT == 0
            labels_BT = np.where(hidden, IGNORE, ids_BT)
            if str(each.index) in step.targets:
                targets = side.array(step.targets[str(each.index)])
                for row_T, open_T, its in zip(labels_BT, ~hidden, targets, strict=False):
                    row_T[open_T] = its[: open_T.sum()]
        positions = None if each.positions is None else side.array(each.positions)
        whole = len(step.losses) == len(seen)
        loss = step.losses[n] if whole else each.loss
        found.append(Micro(ids_BT, labels_BT, mask_BT, positions, loss))
    return tuple(found)


def optimiser_of(settings: Mapping[str, Any]) -> Optimiser:
    """The rule of torch.optim that the settings name."""
    get = {key.removeprefix("optimiser."): value for key, value in settings.items()}.get
    betas, clip = get("betas") or (0.9, 0.999), get("clip")
    return Optimiser(
        str(get("name") or "adamw").lower(),
        (float(betas[0]), float(betas[1])),
        float(get("eps") or 1e-8),
        float(get("weight_decay") or 0.0),
        float(get("momentum") or 0.0),
        float(clip) if clip else None,
    )


def _base_moves(side: Evidence) -> bool:
    """Whether the base changed from step to step, merges aside."""
    turned = {each.step for each in side.happened if each.what in TURNS}
    seen = [each for each in side.steps if each.base]
    moved = any(x.base != y.base for x, y in pairwise(seen) if x.step not in turned)
    return moved or any(
        isinstance(each, Weights) and each.step and each.step not in turned and each.changed
        for each in side.weights
    )


def _turns(side: Evidence) -> tuple[Turn, ...]:
    found = []
    for at, event in enumerate(side.events):
        if not isinstance(event, Happened) or event.what not in TURNS or not event.step:
            continue
        after = next((e for e in side.events[at:] if isinstance(e, Snapshot)), None)
        near = after is not None and (after.step or 0) == event.step
        fresh = factors_of(side, after) if near and after is not None else {}
        found.append(Turn(event.what, event.step, fresh))  # type: ignore[arg-type]
    return tuple(found)
