"""From what was recorded to replicas: the same rows of both sides, and what could not be built."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.diagnose.compare.moments import steps_before
from weft.diagnose.proof.fed import Place, Seen, context, matched_places, ruled
from weft.diagnose.proof.floors import Null
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.merges import Told, told_apart, unmerged
from weft.diagnose.proof.replica import BaseValue, Moment, Replica, Row, Sampler, Stop
from weft.diagnose.proof.schooling import course_of
from weft.diagnose.proof.states import adapters, base_of, form, snapshot_at, updates_of
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.diagnose.sides.samplers import sampler_of
from weft.diagnose.words import counted
from weft.runs.evidence import Generation, Pass

ROWS = 16
"""Prompts that are read, at most."""

MOMENTS = 4
"""Of weights that keep changing, so many states are looked at."""

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
    nulls: frozenset[Null] = frozenset()  # in which the sides differ
    merge: Told | None = None  # what one side's weights hold of an update that the other adds


def build(pair: Pair, engine: Engine, *, seed: int = 0) -> Built:
    """Replicas of both sides."""
    places, notes = matched_places(pair)
    staged = _one_stage(pair, places)
    if len(staged) < len(places):
        left = counted(len(places) - len(staged), "prompt")
        notes.append(f"{left} read after other numbers of training steps were not exchanged")
    numbers = _moments(pair, staged)
    kept = _spread(numbers)
    if len(kept) < len(staged):
        notes.append(f"swaps were tried on {len(kept)} of {counted(len(staged), 'prompt')}")
    places, numbers = [staged[n] for n in kept], [numbers[n] for n in kept]
    lone = _lone(pair.a), _lone(pair.b)
    made = []
    for n, (name, side) in enumerate(pair.sides):
        mine = [each[n] for each in places]
        firsts = {
            number: each.of for number, each in reversed(list(zip(numbers, mine, strict=True)))
        }
        weights = [_weights(side, firsts[number]) for number in sorted(firsts)]
        first, *later = weights or [_weights(side, lone[n])]
        rows = ruled([replace(each.row, moment=k) for k, each in zip(numbers, mine, strict=True)])
        replica = Replica(
            name,
            first.base,
            first.adapter,
            rows,
            context(side, [each for each in mine if each.generation is not None]),
            course=course_of(side),
            dropping=any(each.of.training and each.of.dropouts > 0 for each in mine),
            later=tuple(later),
        )
        said = next((each.generation for each in mine if each.generation is not None), None)
        if said is not None:
            replica = replica.with_(
                sampler=_sampler(said.settings | _seen(side, said)),
                stop=_stop(said.settings),
                seed=_seed(side),
            )
        made.append(replica)
    a, b = made
    if not places:
        drawn = _drawn(a.base, b.base, seed)
        a, b = a.with_(rows=drawn), b.with_(rows=drawn)
    seen = [tuple(each[n].seen for each in places) or (Seen(),) * len(a.rows) for n in (0, 1)]
    merge = None
    if not any(side.steps for _, side in pair.sides):
        known = [each for _, side in pair.sides for each in adapters(side)]
        a, b = unmerged(engine, a, b, known)
        merge = told_apart(engine, a, b)
    nulls = frozenset(null for two in places for null in _nulls(*two))
    return Built(a, b, seen[0], seen[1], not places, tuple(notes), nulls, merge)


Two = tuple[Place, Place]


def _nulls(a: Place, b: Place) -> Iterator[Null]:
    """What must not matter, and is not the same in how a row was fed."""
    if a.of.rows != b.of.rows:
        yield "split"
    if a.row.left != b.row.left:
        yield "left"
    after = (each.of.length - each.row.left - len(each.row.prompt) for each in (a, b))
    if len(set(after)) > 1:
        yield "right"


def _one_stage(pair: Pair, places: Sequence[Two]) -> list[Two]:
    """Rows that were read when both sides had taken as many steps as at the first of them."""
    steps = [steps_before(side) for _, side in pair.sides]
    at = [tuple(its[each.of.index] for its, each in zip(steps, two, strict=True)) for two in places]
    return [two for two, when in zip(places, at, strict=True) if when == at[0]]


def _moments(pair: Pair, places: Sequence[Two]) -> list[int]:
    """By row, the number of the moment at which it was read; a change on either side ends one."""
    known: dict[tuple, int] = {}
    forms: dict[tuple[int, int], tuple] = {}
    found = []
    for two in places:
        for n, (_, side) in enumerate(pair.sides):
            if (n, two[n].of.index) not in forms:
                forms[n, two[n].of.index] = form(side, two[n].of)
        key = tuple(forms[n, each.of.index] for n, each in enumerate(two))
        found.append(known.setdefault(key, len(known)))
    return found


def _spread(numbers: Sequence[int]) -> list[int]:
    """At most `ROWS` rows, in order, as many of every moment as it has and the others leave."""
    met: dict[int, int] = {}
    turns = []
    for n, number in enumerate(numbers):
        if number < MOMENTS:
            met[number] = met.get(number, 0) + 1
            turns.append((met[number], n))
    return sorted(n for _, n in sorted(turns)[:ROWS])


def _weights(side: Evidence, of: Pass | None) -> Moment:
    model = of.model if of is not None else side.weights[0].model if side.weights else None
    return Moment(base_of(side, model, of), updates_of(side, snapshot_at(side, model, of)))


def _lone(side: Evidence) -> Pass | None:
    """The pass before which a side without prompts is looked at: its training begins there."""
    reads = (each for each in side.passes if not each.grad and each.phase != "train")
    return next(reads, side.passes[0] if side.passes else None)


def _seen(side: Evidence, said: Generation) -> dict[str, Any]:
    """What counts before what was set: the temperature that a side's own tokens show."""
    found = sampler_of(side, said).values.get("temperature")
    return {} if found is None else {"temperature": found}


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
