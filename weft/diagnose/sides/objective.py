"""What a training step minimised: which mean of the nats of its tokens.

Shapes: B rows, T positions; M forwards of one step (micro-batches).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from weft.diagnose.sides.evidence import Evidence
from weft.runs.evidence import Pass, TrainStep

IGNORED = -100
"""A label that is not supervised."""

MEAN = "the mean over tokens"
"""The mean that most train on, whatever the forwards."""


@dataclass(frozen=True)
class Tokens:
    """Supervised nats of one forward."""

    total: float
    count: int
    row_means: tuple[float, ...]
    positions: int  # predictions, supervised or not
    row_counts: tuple[int, ...]  # of the rows that `row_means` has


def tokens_of(side: Evidence, step: TrainStep) -> tuple[Tokens, ...]:
    """Of each forward of a step; nothing if one of them recorded no nats or no labels.

    Labels that the model was not given are those of all real tokens, if the step counted as many.
    """
    known = {each.index: each for each in side.passes}
    found = []
    for index in step.passes:
        seen = known.get(index)
        if seen is None or (tokens := _tokens(side, step, seen)) is None:
            return ()
        found.append(tokens)
    if step.supervised not in (None, sum(each.count for each in found)):
        return ()
    return tuple(found)


def _tokens(side: Evidence, step: TrainStep, seen: Pass) -> Tokens | None:
    if seen.nll is None:
        return _rows_alone(side, seen)
    nll_BT = np.asarray(side.array(seen.nll), np.float64)
    mask_BT = None if seen.mask is None else side.array(seen.mask) != 0
    if seen.labels is not None:
        kept_BT = side.array(seen.labels)[:, 1:] != IGNORED
    elif (name := step.targets.get(str(seen.index))) is not None:
        kept_BT = _placed(side.array(name) != IGNORED, mask_BT, nll_BT.shape[1] + 1)[:, 1:]
    elif mask_BT is not None:
        kept_BT = mask_BT[:, 1:]
    else:
        kept_BT = np.ones_like(nll_BT, dtype=bool)
    if nll_BT.shape != kept_BT.shape:
        return None
    nll_BT = np.where(kept_BT, nll_BT, 0.0)
    counts = kept_BT.sum(1)
    means = tuple(float(row.sum() / n) for row, n in zip(nll_BT, counts, strict=True) if n)
    kept = tuple(int(n) for n in counts if n)
    return Tokens(float(nll_BT.sum()), int(counts.sum()), means, kept_BT.size, kept)


def _rows_alone(side: Evidence, seen: Pass) -> Tokens | None:
    """Where nats are known by row only."""
    if seen.row_nll is None or seen.labels is None:
        return None
    nll_B = np.asarray(side.array(seen.row_nll), np.float64)
    kept_BT = side.array(seen.labels)[:, 1:] != IGNORED
    counts = kept_BT.sum(1)
    means = tuple(float(nats / n) for nats, n in zip(nll_B, counts, strict=True) if n)
    kept = tuple(int(n) for n in counts if n)
    return Tokens(float(nll_B[counts > 0].sum()), sum(kept), means, kept_BT.size, kept)


def _placed(targets_BT: np.ndarray, mask_BT: np.ndarray | None, width: int) -> np.ndarray:
    """Targets of rows without padding, at the columns at which the rows stand."""
    placed_BT = np.zeros((len(targets_BT), width), dtype=bool)
    for row, its_T in enumerate(targets_BT):
        start = 0 if mask_BT is None else int(mask_BT[row].argmax())
        its_T = its_T[: width - start]
        placed_BT[row, start : start + len(its_T)] = its_T
    return placed_BT


def minimised(side: Evidence, step: TrainStep) -> float | None:
    """Gradients of several losses add up, so it is their sum; else the loss as the run has it."""
    if side.kind != "run" and step.losses:
        return float(sum(step.losses))
    return step.loss


def candidates(tokens: tuple[Tokens, ...]) -> Mapping[str, float]:
    """What a step may have minimised, by name. Means over nothing are left out."""
    filled = [each for each in tokens if each.count]
    if not filled:
        return {}
    means = [each.total / each.count for each in filled]
    rows = [mean for each in filled for mean in each.row_means]
    total, count = sum(each.total for each in filled), sum(each.count for each in filled)
    found = {
        MEAN: total / count,
        "the mean of the forwards' means": sum(means) / len(tokens),
        "the sum of the forwards' means": sum(means),
        "the mean of the rows' means": sum(rows) / len(rows),
        "the sum over tokens": total,
        "the mean over all positions, supervised or not": total / sum(t.positions for t in tokens),
    }
    found["the mean over tokens, divided by the forwards"] = total / count / len(tokens)
    if len(filled) == 1:
        found |= _of_groups(filled[0])
    return found


def _of_groups(tokens: Tokens) -> Mapping[str, float]:
    """Of a forward that was made in parts: the mean of the means of so many rows after another."""
    sums = [mean * n for mean, n in zip(tokens.row_means, tokens.row_counts, strict=True)]
    found = {}
    for size in range(2, len(sums)):
        starts = range(0, len(sums), size)
        means = [sum(sums[k : k + size]) / sum(tokens.row_counts[k : k + size]) for k in starts]
        found[f"the mean of the means of {size} rows each"] = sum(means) / len(means)
    return found


def explained(value: float, tokens: tuple[Tokens, ...], tolerance: float) -> tuple[str, ...]:
    """Names of the candidates that a minimised value is, to a relative tolerance, nearest first."""
    off = {
        name: abs(value - candidate) / max(abs(candidate), 1e-12)
        for name, candidate in candidates(tokens).items()
    }
    near = sorted(off, key=lambda name: max(off[name], tolerance / 100))  # as good as equal: as is
    return tuple(name for name in near if off[name] <= tolerance)
