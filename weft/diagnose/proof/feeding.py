"""What a model is fed when it reads a prompt and then a completion, in the way of a replica.

Decoding with a cache and reading everything again are the same function, so a completion is read
in one pass where it can be: each position attends to what its decoding step saw.

Shapes: T positions of one text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weft.diagnose.proof.replica import Context, Row


@dataclass(frozen=True, eq=False)
class Reading:
    """A text, where its tokens stand, what each may see, and where the next token is asked for."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    outs: tuple[int, ...]
    open_T: np.ndarray  # bool, columns that may be attended to
    open_TT: np.ndarray | None = None  # bool, where positions see different things

    def __len__(self) -> int:
        return len(self.ids)


def padded(reading: Reading, left: int, right: int) -> Reading:
    """The same with closed columns before and after it, which must not matter."""
    positions = (0,) * left + reading.positions + reading.positions[-1:] * right
    open_T = np.pad(reading.open_T, (left, right))
    open_TT = reading.open_TT
    if open_TT is not None:
        open_TT = np.pad(open_TT, (left, right)) | np.eye(len(positions), dtype=bool)
    outs = tuple(left + at for at in reading.outs)
    return Reading((0,) * left + reading.ids + (0,) * right, positions, outs, open_T, open_TT)


def readings(
    row: Row, context: Context, tokens: tuple[int, ...] = (), tail: int = 1
) -> tuple[Reading, ...]:
    """Readings that ask for the last `tail` positions of a prompt, then for one a token."""
    width = len(row.ids)
    outs = tuple(range(width - min(tail, len(row.prompt)), width))
    open_T = np.ones(width, bool)
    if not row.attended:
        open_T[: row.left] = False
    if not tokens:
        return (Reading(row.ids, row.positions, outs, open_T),)
    if context.plain or (not row.left and not _limited(context)):
        on = (context.position(row, step) for step in range(1, len(tokens) + 1))
        return (
            Reading(
                row.ids + tokens,
                (*row.positions, *on),
                (*outs, *range(width, width + len(tokens))),
                np.concatenate([open_T, np.ones(len(tokens), bool)]),
            ),
        )
    if any(_slides(context, step) for step in range(1, len(tokens) + 1)):
        alone = (_window(row, context, tokens, step) for step in range(1, len(tokens) + 1))
        return (Reading(row.ids, row.positions, outs, open_T), *alone)
    return (_stepwise(row, context, tokens, outs, open_T),)


def _limited(context: Context) -> bool:
    return any(seen is not None for seen in context.visible)


def _slides(context: Context, step: int) -> bool:
    """Whether a step sees other starts than the step before: a window that was read anew."""
    seen = context.sees(step)
    if seen is None or seen == 1:
        return False
    before = context.sees(step - 1) if step > 1 else None
    return before is None or seen != before + 1


def _window(row: Row, context: Context, tokens: tuple[int, ...], step: int) -> Reading:
    """The newest positions, read on their own."""
    whole = row.ids + tokens[:step]
    seen = min(context.sees(step) or len(whole), len(whole))
    at = len(whole) - seen
    last = context.position(row, step)
    positions = tuple(range(last - seen + 1, last + 1))
    hidden = max(0, row.left - at) if context.masked and not row.attended else 0
    open_T = np.arange(seen) >= hidden
    return Reading(whole[at:], positions, (seen - 1,), open_T)


def _stepwise(
    row: Row,
    context: Context,
    tokens: tuple[int, ...],
    outs: tuple[int, ...],
    open_T: np.ndarray,
) -> Reading:
    """One reading in which each position of the completion sees what its step saw."""
    width, whole = len(row.ids), len(row.ids) + len(tokens)
    open_TT = np.tril(np.ones((whole, whole), bool))
    open_TT[:width, :width] &= open_T
    positions = list(row.positions)
    for step in range(1, len(tokens) + 1):
        at, seen = width + step - 1, context.sees(step)
        if seen is not None and seen <= at:
            open_TT[at, : at + 1 - seen] = False
        if context.masked and not row.attended:
            open_TT[at, : row.left] = False
        positions.append(context.position(row, step))
    full = np.ones(whole, bool)
    asked = (*outs, *range(width, whole))
    return Reading(row.ids + tokens, tuple(positions), asked, full, open_TT)
