"""The rows of one split, ready to be scored, with the texts and the counts that go with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from weft.core.batch import Example
from weft.data.task import Task

TOGETHER = 200
"""Rows that are hashed together."""


@dataclass(frozen=True, eq=False)
class Item:
    """One example, and the row it was made of."""

    example: Example
    row: dict[str, Any]
    prompt: str
    reference: str
    """The response, whole even where the example was cut."""
    prompt_length: int
    truncated: bool
    full_length: int | None = None
    """Tokens before the example was cut; None where it was not."""

    @property
    def prompt_ids(self) -> np.ndarray:
        """The ids that generation starts from, also where the prompt is supervised."""
        return self.example.ids_T[: self.prompt_length]


@dataclass(frozen=True)
class Candidate:
    """One of the responses that a task chooses between, as the tokenizer sees it."""

    text: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    """The text of each token, quoted."""

    @property
    def shown(self) -> str:
        """Its tokens, as text and as ids."""
        tokens = zip(self.pieces, self.ids, strict=True)
        return ", ".join(f"{piece} ({id})" for piece, id in tokens)


@dataclass(frozen=True, eq=False)
class Split:
    """The usable rows of one split. `examples`, `rows`, `prompts` and `references` align."""

    name: str
    task: Task
    items: tuple[Item, ...]
    max_length: int
    """Where examples were really cut: at most the model's context."""
    counts: dict[str, int]
    """read = bad + dropped_truncated + kept; also blank, truncated, tokens, supervised_tokens and
    longest."""
    notices: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    """What every row chooses between, in the order of the labels; none for most tasks."""

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """What is scored."""
        return tuple(item.example for item in self.items)

    @cached_property
    def rows(self) -> tuple[dict[str, Any], ...]:
        """The rows as they were read."""
        return tuple(item.row for item in self.items)

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """The texts before the responses."""
        return tuple(item.prompt for item in self.items)

    @cached_property
    def references(self) -> tuple[str, ...]:
        """The responses as text."""
        return tuple(item.reference for item in self.items)

    @cached_property
    def largest_id(self) -> int:
        """The largest token id, labels included: a model's vocabulary must be larger."""
        chosen = max((i for each in self.candidates for i in each.ids), default=0)
        arrays = ([x for e in part for x in (e.ids_T, e.labels_T)] for part in self._parts())
        return max(chosen, *(int(np.concatenate(each).max()) for each in arrays))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all ids and labels: equal when the same numbers are trained on."""
        digest = hashlib.sha256()
        for part in self._parts():
            sizes = np.array([example.tokens for example in part])
            rows = zip(sizes[:, None], part, strict=True)
            numbers = [x for size, e in rows for x in (size, e.ids_T, e.labels_T)]
            digest.update(np.concatenate(numbers).astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def rows_fingerprint(self) -> str:
        """SHA-256 of the rows as they were read: equal when the same data was given."""
        digest = hashlib.sha256()
        as_json = json.JSONEncoder(sort_keys=True, default=str).encode
        for row in self.rows:
            digest.update(as_json(row).encode() + b"\n")
        return digest.hexdigest()

    def _parts(self) -> Iterator[tuple[Example, ...]]:
        """Examples by the hundred: NumPy takes as long for an array of one row as for many."""
        for start in range(0, len(self.examples), TOGETHER):
            yield self.examples[start : start + TOGETHER]
