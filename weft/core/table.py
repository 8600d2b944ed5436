"""The score table: what every member scored on every example, as sums and counts.

Shapes: N members, E examples. A cell is a loss sum and its token count, or a reward and 1. Means
are always sum / count over all examples, never a mean of means.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weft.core.errors import InputError, did_you_mean
from weft.core.files import read_jsonl, write_atomic


@dataclass(frozen=True, eq=False)
class ScoreRow:
    """One member's scores."""

    member: str
    ids: tuple[str, ...]
    sums: np.ndarray  # [E]
    counts: np.ndarray  # [E]

    @property
    def mean(self) -> float:
        """Sum over all examples divided by count; NaN when nothing was counted."""
        return float(_ratio(self.sums.sum(), self.counts.sum()))

    @property
    def means(self) -> np.ndarray:
        """The mean within each example; NaN where nothing was counted."""
        return _ratio(self.sums, self.counts)

    @property
    def standard_error(self) -> float:
        """Of the mean of `means`, over the examples that were counted; NaN with fewer than two."""
        known = self.means[self.counts > 0]
        if len(known) < 2:
            return float("nan")
        return float(known.std(ddof=1) / np.sqrt(len(known)))


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of `members` (rows) on examples `ids` (columns)."""

    members: tuple[str, ...]
    ids: tuple[str, ...]
    sums: np.ndarray  # [N, E] float64
    counts: np.ndarray  # [N, E] int64

    def __post_init__(self) -> None:
        shape = (len(self.members), len(self.ids))
        object.__setattr__(self, "sums", np.asarray(self.sums, dtype=np.float64))
        object.__setattr__(self, "counts", np.asarray(self.counts, dtype=np.int64))
        assert self.sums.shape == shape, (self.sums.shape, shape)
        assert self.counts.shape == shape, (self.counts.shape, shape)
        assert len(set(self.members)) == len(self.members), "member names repeat"
        assert len(set(self.ids)) == len(self.ids), "example ids repeat"

    def means(self) -> np.ndarray:
        """Each member's mean [N] over all examples; NaN when nothing was counted."""
        return _ratio(self.sums.sum(axis=1), self.counts.sum(axis=1))

    def row(self, member: str) -> ScoreRow:
        """The scores of one member."""
        if member not in self.members:
            raise InputError(
                f"the table has no member `{member}`; it has {', '.join(self.members)}",
                did_you_mean(member, list(self.members)),
            )
        index = self.members.index(member)
        return ScoreRow(member, self.ids, self.sums[index], self.counts[index])

    @classmethod
    def concat(cls, tables: Sequence[ScoreTable]) -> ScoreTable:
        """More examples: tables of the same members side by side."""
        members = tables[0].members
        assert all(table.members == members for table in tables), "tables of different members"
        return cls(
            members,
            tuple(id for table in tables for id in table.ids),
            np.concatenate([table.sums for table in tables], axis=1),
            np.concatenate([table.counts for table in tables], axis=1),
        )

    @classmethod
    def stack(cls, tables: Sequence[ScoreTable]) -> ScoreTable:
        """More members: tables of the same examples on top of each other."""
        ids = tables[0].ids
        assert all(table.ids == ids for table in tables), "tables of different examples"
        return cls(
            tuple(member for table in tables for member in table.members),
            ids,
            np.concatenate([table.sums for table in tables]),
            np.concatenate([table.counts for table in tables]),
        )

    def save(self, path: Path) -> None:
        """Write JSON Lines: the members, then one line per example; floats are exact."""
        lines: list[dict[str, Any]] = [{"members": self.members}]
        for index, id in enumerate(self.ids):
            sums = [_to_json(value) for value in self.sums[:, index].tolist()]
            lines.append({"id": id, "sums": sums, "counts": self.counts[:, index].tolist()})
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_atomic(path, text)

    @classmethod
    def load(cls, path: Path) -> ScoreTable:
        """Read what `save` wrote."""
        if not path.exists():
            raise InputError(f"there is no score table {path}")
        lines = read_jsonl(path)
        try:
            members = tuple(lines[0]["members"])
            rows = lines[1:]
            shape = (len(rows), len(members))
            sums_EN = np.array([[float(value) for value in row["sums"]] for row in rows])
            counts_EN = np.array([row["counts"] for row in rows], dtype=np.int64)
            ids = tuple(row["id"] for row in rows)
            return cls(members, ids, sums_EN.reshape(shape).T, counts_EN.reshape(shape).T)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a score table: {error!r}") from None


def pair(a: ScoreRow, b: ScoreRow) -> tuple[ScoreRow, ScoreRow]:
    """Both rows on the examples they share, in the order of `a`."""
    place = {id: index for index, id in enumerate(b.ids)}
    shared = [(index, place[id]) for index, id in enumerate(a.ids) if id in place]
    if not shared:
        raise InputError(
            f"`{a.member}` and `{b.member}` have no example in common",
            hint="evaluate both on the same data",
        )
    index_a, index_b = (list(indices) for indices in zip(*shared, strict=True))
    return _select(a, index_a), _select(b, index_b)


def _select(row: ScoreRow, index: list[int]) -> ScoreRow:
    ids = tuple(row.ids[i] for i in index)
    return ScoreRow(row.member, ids, row.sums[index], row.counts[index])


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    sums, counts = np.asarray(sums, dtype=np.float64), np.asarray(counts)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _to_json(value: float) -> float | str:
    """A diverged member scores NaN or infinity, for which JSON has only a word."""
    return value if np.isfinite(value) else str(value)
