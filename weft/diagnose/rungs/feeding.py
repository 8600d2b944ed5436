"""What goes into a model beside the ids: which positions may be attended to, their numbers, labels.

Rows are compared token by token without padding, so that correct padding makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from weft.diagnose.compare.align import Row
from weft.diagnose.finding import Finding, Swap
from weft.diagnose.sides.evidence import Pair
from weft.diagnose.words import counted

RUNG = 2

IGNORED = -100

Rows = Sequence[tuple[Row, Row]]


def masks(rows: Rows, what: str) -> tuple[list[Finding], list[str]]:
    """Padding that is attended to, and tokens that are not, on one side only."""
    same = [(n, a, b) for n, (a, b) in enumerate(rows, start=1) if a.ids == b.ids]
    findings = []
    for words, count in (
        ("padding before the text is open to attention", lambda row: row.attended_padding),
        ("tokens of the text are hidden by the mask", lambda row: row.hidden_tokens),
    ):
        off = [(n, a, b) for n, a, b in same if bool(count(a)) != bool(count(b))]
        for letter, hurt in (
            ("A", [(n, a, b) for n, a, b in off if count(a)]),
            ("B", [(n, a, b) for n, a, b in off if count(b)]),
        ):
            if not hurt:
                continue
            counts = [count(a if letter == "A" else b) for _, a, b in hurt]
            side = hurt[0][1] if letter == "A" else hurt[0][2]
            given = "no mask was given" if side.of.mask is None else "the mask says so"
            findings.append(
                Finding(
                    RUNG,
                    "factor",
                    "mask",
                    rows_named([n for n, _, _ in hurt], len(rows), what),
                    f"{words} in {letter}, at up to {counted(max(counts), 'position')} of "
                    f"{rows_named([n for n, _, _ in hurt], len(rows), what)}: {given}; not so in "
                    f"{'B' if letter == 'A' else 'A'}",
                    value=float(max(counts)),
                    other=0.0,
                    unit="positions",
                    where=side.of.where,
                    fix="pass the tokenizer's attention_mask to the model",
                    swap=Swap("mask"),
                )
            )
    if findings or not same:
        return findings, []
    return [], [f"masks equal: {len(same)} of {counted(len(rows), what)}"]


def positions(rows: Rows, what: str, masked: bool) -> tuple[list[Finding], list[str]]:
    """Numbers of positions; where the mask differs they follow from it."""
    seen = [
        (n, a, b)
        for n, (a, b) in enumerate(rows, start=1)
        if a.ids == b.ids and a.positions is not None and b.positions is not None
    ]
    off = [(n, a, b) for n, a, b in seen if not np.array_equal(_of(a), _of(b))]
    if not seen:
        return [], []
    if not off:
        return [], [f"positions equal: {len(seen)} of {counted(len(rows), what)}"]
    running = [
        all(map(_running, side)) for side in ([a for _, a, _ in off], [b for _, _, b in off])
    ]
    letter = "A" if running[1] and not running[0] else "B"
    row = next(a if letter == "A" else b for _, a, b in off)
    shift = {int(x) for _, a, b in off for x in np.unique(_of(b) - _of(a))}
    how = (
        f"all by {shift.pop():+d}"
        if len(shift) == 1
        else f"by {min(shift):+d} to {max(shift):+d}, and by how much they are padded"
        if any(a.padding or b.padding for _, a, b in off)
        else f"by {min(shift):+d} to {max(shift):+d}"
    )
    place = rows_named([n for n, _, _ in off], len(rows), what)
    return [
        Finding(
            RUNG,
            "effect" if masked else "factor",
            "positions",
            place,
            f"positions of the same tokens differ at {place} ({how}): they start at "
            f"{int(_of(row)[0])} in {letter}"
            + (", where the running count of the mask starts at 0" if not _running(row) else ""),
            value=float(max(np.abs(_of(b) - _of(a)).max() for _, a, b in off)),
            other=0.0,
            unit="positions",
            where=row.of.where,
            fix="give position_ids = attention_mask.cumsum(-1) - 1, or pad on the right",
            swap=Swap("positions"),
        )
    ], []


def _of(row: Row) -> np.ndarray:
    found: np.ndarray = np.asarray(row.positions, dtype=np.int64)
    return found


def _running(row: Row) -> bool:
    """Whether its positions count its own tokens from 0."""
    return bool(np.array_equal(_of(row), np.arange(len(row.ids))))


def labels(pair: Pair, rows: Rows) -> Iterator[Finding | str]:
    """Which tokens are supervised, and with what."""
    seen = [
        (n, a, b)
        for n, (a, b) in enumerate(rows, start=1)
        if a.ids == b.ids and a.labels is not None and b.labels is not None
    ]
    if not seen:
        yield from _supervised(pair)
        return
    off = [(n, a, b) for n, a, b in seen if not np.array_equal(_labels(a), _labels(b))]
    if not off:
        yield f"labels equal: {len(seen)} of {counted(len(rows), 'training row')}"
        return
    place = rows_named([n for n, _, _ in off], len(rows), "training row")
    counts = [sum(int((_labels(row) != IGNORED).sum()) for row in side) for side in
              ([a for _, a, _ in off], [b for _, _, b in off])]  # fmt: skip
    first = f"in training row {off[0][0]}, " if len(off) > 1 else ""
    yield Finding(
        RUNG,
        "factor",
        "labels",
        place,
        f"labels of the same tokens differ at {place}: {first}{_how(off[0][1], off[0][2])}; of "
        f"{'these rows' if len(off) > 1 else 'this row'} A supervises "
        f"{counted(counts[0], 'token')}, B {counts[1]}",
        value=float(counts[1]),
        other=float(counts[0]),
        unit="supervised tokens",
        where=off[0][2].of.where,
        fix="supervise the response only, with labels at the places of their tokens",
        swap=Swap("labels"),
    )


def _labels(row: Row) -> np.ndarray:
    found: np.ndarray = np.asarray(row.labels)
    return found


def _how(a: Row, b: Row) -> str:
    """The difference of two rows of labels in words, by the first row that has one."""
    said = [_state(row) for row in (a, b)]
    if said[0] != said[1]:
        return f"{said[0]} in A, {said[1]} in B"
    x, y = _labels(a) != IGNORED, _labels(b) != IGNORED
    extra = np.flatnonzero(y & ~x)
    if len(extra):
        return f"B supervises tokens {int(extra[0]) + 1} to {int(extra[-1]) + 1} as well"
    lost = np.flatnonzero(x & ~y)
    if len(lost):
        return f"B leaves tokens {int(lost[0]) + 1} to {int(lost[-1]) + 1} out"
    return "other labels at the same places"


def _state(row: Row) -> str:
    given = _labels(row)
    ids = np.array(row.ids)
    on = np.flatnonzero(given != IGNORED)
    if not len(on):
        return "nothing is supervised (all -100)"
    if np.array_equal(given[on], ids[on]):
        return (
            "all tokens are supervised"
            if len(on) == len(ids)
            else (f"tokens {int(on[0]) + 1} to {int(on[-1]) + 1} are supervised")
        )
    for shift, words in ((1, "one place too early"), (-1, "one place too late")):
        inside = on[(on + shift >= 0) & (on + shift < len(ids))]
        if len(inside) and np.array_equal(given[inside], ids[inside + shift]):
            return f"labels stand {words}"
    return "labels are not the tokens at their places"


def _supervised(pair: Pair) -> Iterator[Finding | str]:
    """Without labels: how many tokens each step supervised."""
    steps = {step.step: step for step in pair.a.steps}
    off = [
        (steps[step.step], step)
        for step in pair.b.steps
        if step.step in steps
        and step.batch == steps[step.step].batch != ""
        and None not in (step.supervised, steps[step.step].supervised)
        and (step.supervised, step.labels) != (
            steps[step.step].supervised, steps[step.step].labels)
    ]  # fmt: skip
    if not off:
        return
    a, b = off[0]
    said = f"A supervises {counted(a.supervised or 0, 'token')}, B {b.supervised}"
    if a.supervised == b.supervised:
        said = f"A and B supervise {counted(a.supervised or 0, 'token')}, not the same ones"
    yield Finding(
        RUNG,
        "factor",
        "labels",
        f"step {a.step}",
        f"labels of the same rows differ: of those of step {a.step}, {said}; and so at "
        f"{len(off)} of {counted(len(steps), 'step')}",
        step=a.step,
        value=float(b.supervised or 0),
        other=float(a.supervised or 0),
        unit="supervised tokens",
        where=b.where,
        swap=Swap("labels"),
    )


def rows_named(numbers: Sequence[int], among: int, what: str) -> str:
    """`all 16 prompts`, `prompt 3`, `prompts 2, 5 and 7`, `9 of 16 prompts`."""
    if len(numbers) == among and among > 1:
        return f"all {counted(among, what)}"
    if len(numbers) == 1:
        return f"{what} {numbers[0]}"
    if len(numbers) <= 4:
        return f"{what}s {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
    return f"{len(numbers)} of {counted(among, what)}"
