"""The same prompts on both sides, as they were fed, and what was recorded of them.

Shapes: V vocabulary, L blocks, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from weft.diagnose.compare import align
from weft.diagnose.proof.replica import DECODED, Context, Origin, Row, natural
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.diagnose.words import counted
from weft.runs.evidence import Generation, Pass


@dataclass(frozen=True, eq=False)
class Seen:
    """What a side recorded of a row: what its replica must reproduce."""

    logits_V: np.ndarray | None = None  # at the end of the prompt
    decoded: Mapping[int, np.ndarray] | None = None  # [V] by decoding step, along its own tokens
    hidden_LD: np.ndarray | None = None  # [L + 1, D]


@dataclass(frozen=True, eq=False)
class Place:
    """A row of one side: how it was fed and what came of it."""

    row: Row
    seen: Seen
    of: Pass
    generation: Generation | None = None
    number: int = 0  # of the row in its pass


def matched_places(pair: Pair) -> tuple[list[tuple[Place, Place]], list[str]]:
    """Matched rows: those with completions, or if there are none, all that both sides read."""
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
        notes.append(f"{counted(unmatched, 'prompt')} that only one side has were not exchanged")
    return found, notes


def _said(said: align.Said, pads: frozenset[int]) -> Place | None:
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
        made = Row(said.prompt, tokens=said.tokens, ended=said.ended)
        return Place(made, Seen(decoded=decoded), passes[0], said.of, said.number)
    fed = replace(_row(row), tokens=said.tokens, ended=said.ended)
    return Place(fed, Seen(row.logits, decoded, row.hidden), passes[0], said.of, said.number)


def _read(row: align.Row) -> Place:
    return Place(_row(row), Seen(row.logits, None, row.hidden), row.of)


def _row(row: align.Row) -> Row:
    """A recorded row without what stands after its real tokens."""
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


def ruled(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows without padding follow the rule of those that have some."""
    index = any(row.left and row.rule == "index" for row in rows)
    loose = any(row.left and row.attended for row in rows)
    return tuple(
        replace(row, rule="index" if index and row.rule == "counted" else row.rule, attended=loose)
        if not row.left
        else row
        for row in rows
    )


def context(side: Evidence, places: Sequence[Place]) -> Context:
    """How decoding steps were fed, from the passes of all generations that replicas have."""
    by_index = {each.index: each for each in side.passes}
    visible: list[int | None] = []
    seen_at: list[tuple[Row, int, int, int | None]] = []  # row, step, position, visible
    masked = True
    for place in places:
        assert place.generation is not None
        passes = [by_index[n] for n in place.generation.passes if n in by_index]
        number, row = place.number, place.row
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


def generation_rows(side: Evidence) -> tuple[tuple[Row, ...], ...]:
    """The rows of each generation of a side, in order, as they were fed."""
    pads = frozenset(each.special["pad"] for each in side.tokenizers if "pad" in each.special)
    found = []
    for each in side.generations:
        said = [align.Said(side, each, number, pads) for number in range(len(each.prompts))]
        places = [_said(one, pads) for one in said]
        found.append(ruled([place.row for place in places if place is not None]))
    return tuple(found)
