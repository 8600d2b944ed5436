"""From what was recorded to replicas: the same rows of both sides, and what could not be built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.diagnose import align
from weft.diagnose.evidence import Evidence, Pair
from weft.diagnose.proof.replica import (
    DECODED,
    BaseValue,
    Context,
    Origin,
    Replica,
    Row,
    Sampler,
    Stop,
    Update,
    Updates,
    natural,
)
from weft.diagnose.proof.schooling import course_of
from weft.runs.evidence import AdapterModule, Event, Generation, Pass, Snapshot, TrainStep, Weights

ROWS = 16
"""Prompts that are read, at most."""

DRAWN = 12
"""Length of drawn texts, where a pair has no prompts."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What a side recorded of a row: what its replica must reproduce."""

    logits_V: np.ndarray | None = None  # at the end of the prompt
    decoded: Mapping[int, np.ndarray] | None = None  # [V] by decoding step, along its own tokens
    hidden_LD: np.ndarray | None = None  # [L + 1, D]


@dataclass(frozen=True, eq=False)
class Built:
    """Both replicas, row by row of the same prompts, and what was recorded of these rows."""

    a: Replica
    b: Replica
    seen_a: tuple[Seen, ...]
    seen_b: tuple[Seen, ...]
    drawn: bool = False  # rows were drawn: the sides have none
    not_checked: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Place:
    """A row of one side: how it was fed and what came of it."""

    row: Row
    seen: Seen
    of: Pass
    generation: Generation | None = None


def build(pair: Pair, *, seed: int = 0) -> Built:
    """Replicas of both sides."""
    places, notes = _places(pair)
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
            _ruled([each.row for each in mine]),
            _context(side, [each for each in mine if each.generation is not None]),
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


def _places(pair: Pair) -> tuple[list[tuple[_Place, _Place]], list[str]]:
    """Matched rows, those with completions first; at most `ROWS` of one model a side."""
    pads = align.pad_ids(pair)
    said = align.completions(pair)
    found, notes = [], []
    for a, b in said.pairs:
        x, y = _said(a, pads), _said(b, pads)
        if x is not None and y is not None:
            found.append((x, y))
    if not found:
        read = align.prompt_rows(pair)
        found = [(_read(a), _read(b)) for a, b in read.pairs]
        unmatched = len(read.only_a) + len(read.only_b)
    else:
        unmatched = len(said.only_a) + len(said.only_b)
    if unmatched:
        notes.append(f"{unmatched} prompts that only one side has were not exchanged")
    models = [(a.of.model, b.of.model) for a, b in found]
    if len(set(models)) > 1:
        most = max(set(models), key=models.count)
        found = [each for each, its in zip(found, models, strict=True) if its == most]
        notes.append("replicas are of one model a side; prompts of the others were not exchanged")
    if len(found) > ROWS:
        notes.append(f"swaps were tried on {ROWS} of {len(found)} prompts")
    return found[:ROWS], notes


def _lone(side: Evidence) -> list[Pass]:
    return [each for each in side.passes if not each.grad and each.phase != "train"][:1]


def _said(said: align.Said, pads: frozenset[int]) -> _Place | None:
    """A completion, its prompt as the first pass of its generation had it."""
    by_index = {each.index: each for each in said.side.passes}
    passes = [by_index[index] for index in said.of.passes if index in by_index]
    if not passes:
        return None
    rows = align.rows_of(said.side, passes[:1], pads)
    row = rows[said.number] if said.number < len(rows) else None
    decoded = {}
    for step, each in enumerate(passes[1 : DECODED + 1], start=1):
        if each.logits is not None:
            logits = said.side.array(each.logits)
            if said.number < len(logits):
                decoded[step] = logits[said.number]
    if row is None:
        made = Row(said.prompt, tokens=said.tokens)
        return _Place(made, Seen(decoded=decoded), passes[0], said.of)
    fed = replace(_row(row, said.prompt), tokens=said.tokens)
    return _Place(fed, Seen(row.logits, decoded, row.hidden), passes[0], said.of)


def _read(row: align.Row) -> _Place:
    return _Place(_row(row, row.ids), Seen(row.logits, None, row.hidden), row.of)


def _row(row: align.Row, prompt: tuple[int, ...]) -> Row:
    """A recorded row without what stands after its real tokens."""
    start = row.stop - len(prompt)
    if start < 0 or row.all_ids[start : row.stop] != prompt:  # it was matched in another way
        start, prompt = row.start, row.ids
    made = Row(
        prompt,
        left=start,
        pad=row.all_ids[0] if start else 0,
        attended=start > 0 and (row.mask is None or bool(row.mask[:start].any())),
    )
    if row.positions is None or not len(row.positions):
        return made
    real = [int(each) for each in row.positions][-len(prompt) :]
    first = real[0]
    if real == list(range(first, first + len(real))) and len(real) == len(prompt):
        if first == 0:
            return made
        return replace(made, rule="index" if first == start else first)
    whole = row.side.array(row.of.positions) if row.of.positions else None
    if whole is None:
        return made
    mine = whole if whole.ndim == 1 else whole[min(row.number, len(whole) - 1)]
    return replace(made, held=tuple(int(each) for each in mine[: row.stop]))


def _ruled(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows without padding follow the rule of those that have some."""
    index = any(row.left and row.rule == "index" for row in rows)
    loose = any(row.left and row.attended for row in rows)
    return tuple(
        replace(row, rule="index" if index and row.rule == "counted" else row.rule, attended=loose)
        if not row.left
        else row
        for row in rows
    )


def _context(side: Evidence, places: Sequence[_Place]) -> Context:
    """How decoding steps were fed, from the passes of all generations that replicas have."""
    by_index = {each.index: each for each in side.passes}
    visible: list[int | None] = []
    seen_at: list[tuple[Row, int, int, int | None]] = []  # row, step, position, visible
    masked = True
    for place in places:
        assert place.generation is not None
        passes = [by_index[n] for n in place.generation.passes if n in by_index]
        number, row = _number(place), place.row
        mine: list[int | None] = []
        for step, each in enumerate(passes[1 : DECODED + 1], start=1):
            seen = each.past + each.length
            mine.append(None if seen >= passes[0].length + step else seen)
            at = _last_position(side, each, number)
            if at is not None:
                seen_at.append((row, step, at, mine[-1]))
            if row.left and not row.attended:
                masked = masked and _hides(side, each, number, row.left)
        visible = max(visible, mine, key=len)
    lost = any(each is not None for each in visible)
    origin, shift = _origin(seen_at)
    return Context(tuple(visible) if lost else (), shift, origin, masked)


ORIGINS: tuple[Origin, ...] = ("on", "counted", "index", "fresh")


def _origin(seen_at: Sequence[tuple[Row, int, int, int | None]]) -> tuple[Origin, tuple[int, ...]]:
    """The rule by which positions go on that is off by the same in all rows, and the least."""
    best: tuple[tuple[int, int], Origin, tuple[int, ...]] | None = None
    for origin in ORIGINS:
        off: dict[int, set[int]] = {}
        for row, step, at, seen in seen_at:
            off.setdefault(step, set()).add(at - natural(origin, row, step, seen))
        unlike = sum(len(each) - 1 for each in off.values())
        shift = tuple(min(off[step], key=abs) for step in sorted(off))
        rank = unlike, sum(map(abs, shift))
        if best is None or rank < best[0]:
            best = rank, origin, shift if any(shift) else ()
    return (best[1], best[2]) if best is not None else ("on", ())


def _number(place: _Place) -> int:
    assert place.generation is not None
    for number, prompt in enumerate(place.generation.prompts):
        if prompt == place.row.prompt:
            return number
    return 0


def _last_position(side: Evidence, seen: Pass, number: int) -> int | None:
    if seen.positions is None:
        return None
    whole = side.array(seen.positions)
    row = whole if whole.ndim == 1 else whole[min(number, len(whole) - 1)]
    return int(row[-1])


def _hides(side: Evidence, seen: Pass, number: int, left: int) -> bool:
    if seen.past + seen.length <= left:
        return True  # it cannot see the padding
    if seen.mask is None:
        return False
    mask = side.array(seen.mask)
    if mask.ndim != 2 or number >= len(mask):
        return True
    row = mask[number]
    return not row[:left].any() if len(row) == seen.past + seen.length else False


def base_of(side: Evidence, model: str | None, before: Event | None) -> BaseValue:
    """The base at the moment of an event: as first used, with all that changed until then."""
    events = side.events if before is None else side.events[: side.events.index(before)]
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
    beside = next((each / ref for each in side.path.parents if (each / ref).is_dir()), None)
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
    at = side.events.index(before)
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


def generation_rows(side: Evidence) -> tuple[tuple[Row, ...], ...]:
    """The rows of each generation of a side, in order, as they were fed."""
    pads = frozenset(each.special["pad"] for each in side.tokenizers if "pad" in each.special)
    found = []
    for each in side.generations:
        said = [align.Said(side, each, number, pads) for number in range(len(each.prompts))]
        places = [_said(one, pads) for one in said]
        found.append(_ruled([place.row for place in places if place is not None]))
    return tuple(found)
