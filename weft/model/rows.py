"""Batches to tensors: what one forward sees, and which cell of the score table each target fills.

A forward scores *blocks*. A block is a batch shared by N members: every member reads the same
tokens. Scoring is one block with all members; training several adapters at once is one block a
member, each with its own batch.

Two arrangements give the same numbers:

* `PackedRows`: one long row without padding. A block lies token by token and, within a token,
  member by member, so that a member's rows and an example's tokens are both plain strides.
* `PaddedRows`: one row for each (member, example), padded on the right, for models whose own
  forward must see ordinary batches.

Neither holds what follows an example's last supervised token, nor that token itself: nothing that
counts is predicted from them.

Shapes: N members and M positions (of one member) of a block, R padded rows, L their length,
T all positions of the forward, S all targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from weft.core.batch import IGNORE, Batch, Example
from weft.model.cache import KVCache


@dataclass(frozen=True, eq=False)
class Block:
    """A batch, and the members (start..stop-1 of the bank) that all read it."""

    start: int
    stop: int
    batch: Batch

    @property
    def members(self) -> int:
        """N."""
        return self.stop - self.start

    @property
    def positions(self) -> int:
        """M: the tokens of its examples that a member must read."""
        return sum(example.read for example in self.batch.examples)


@dataclass(frozen=True, eq=False)
class Targets:
    """The supervised positions of a forward.

    `index_S` is the position whose hidden state predicts the token `token_S`; `cell_S` numbers
    the (member, example) pair that it counts for, block by block, examples fastest.
    """

    index_S: torch.Tensor
    token_S: torch.Tensor
    cell_S: torch.Tensor
    cells: int


@dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive examples of equal length in a packed block: count x length x members tokens."""

    count: int
    length: int
    members: int

    @property
    def tokens(self) -> int:
        """Positions of the piece in the packed row."""
        return self.count * self.length * self.members


@dataclass(frozen=True, eq=False)
class PackedRows:
    """One row without padding, of T positions."""

    blocks: tuple[Block, ...]
    ids_1T: torch.Tensor
    positions_1T: torch.Tensor
    pieces: tuple[Piece, ...]
    targets: Targets
    cache: KVCache | None = None

    @property
    def ids(self) -> torch.Tensor:
        """The token ids, however they are arranged."""
        return self.ids_1T

    def order(self, block: Block) -> list[int]:
        """Numbers of a block's examples, in the order of a member's positions."""
        return _by_length(block.batch)

    def spans(self, block: Block) -> list[tuple[Example, int]]:
        """A member's examples in the order of its positions, each with how many it takes."""
        examples = block.batch.examples
        return [(examples[i], examples[i].read) for i in self.order(block)]

    @cached_property
    def sizes(self) -> list[int]:
        """Positions of each block, those of all its members."""
        return [block.members * block.positions for block in self.blocks]

    def views(self, x_TC: torch.Tensor) -> list[torch.Tensor]:
        """Activations [T, C] as views [N, M, C], one for each block."""
        return [
            part.unflatten(0, (-1, block.members)).transpose(0, 1)
            for part, block in zip(x_TC.split(self.sizes), self.blocks, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class PaddedRows:
    """R rows of L positions: in a block member by member, in a member example by example."""

    blocks: tuple[Block, ...]
    ids_RL: torch.Tensor
    mask_RL: torch.Tensor
    targets: Targets

    @property
    def ids(self) -> torch.Tensor:
        """The token ids, however they are arranged."""
        return self.ids_RL

    def order(self, block: Block) -> list[int]:
        """Numbers of a block's examples, in the order of a member's positions."""
        return list(range(len(block.batch.examples)))

    def spans(self, block: Block) -> list[tuple[Example, int]]:
        """A member's examples in the order of its positions, each with how many it takes."""
        return [(example, self.ids_RL.shape[1]) for example in block.batch.examples]

    def views(self, x_TC: torch.Tensor) -> list[torch.Tensor]:
        """Activations [R * L, C] as views [N, M, C], one for each block."""
        return [
            part.unflatten(0, (block.members, -1))
            for part, block in zip(x_TC.split(self.sizes), self.blocks, strict=True)
        ]

    @cached_property
    def sizes(self) -> list[int]:
        """Positions of each block, those of all its members."""
        length = self.ids_RL.shape[1]
        return [block.members * len(block.batch.examples) * length for block in self.blocks]


def pack(blocks: Sequence[Block], device: torch.device) -> PackedRows:
    """Blocks as one row without padding."""
    ids, positions, pieces, targets = [], [], [], _TargetList()
    start = 0
    for block in blocks:
        examples, count = block.batch.examples, block.members
        lengths = [example.read for example in examples]
        for length, rows in zip(*np.unique(lengths, return_counts=True), strict=True):
            pieces.append(Piece(int(rows), int(length), count))
        offset = 0
        for i in _by_length(block.batch):
            example, length = examples[i], lengths[i]
            ids.append(np.repeat(example.ids_T[:length], count))
            positions.append(np.repeat(np.arange(length), count))
            at = np.nonzero(example.labels_T[1:] != IGNORE)[0]
            index = start + (offset + at)[:, None] * count + np.arange(count)
            targets.add(index, example.labels_T[at + 1], i)
            offset += length
        targets.close(block)
        start += count * offset
    return PackedRows(
        tuple(blocks),
        _tensor(ids, device)[None],
        _tensor(positions, device)[None],
        tuple(pieces),
        targets.tensors(device),
    )


def pad(blocks: Sequence[Block], fill: int, device: torch.device) -> PaddedRows:
    """Blocks as ordinary rows, padded on the right with token `fill` (which nothing attends to)."""
    length = max(e.read for block in blocks for e in block.batch.examples)
    ids, mask, targets = [], [], _TargetList()
    start = 0
    for block in blocks:
        examples = block.batch.examples
        lengths = np.array([e.read for e in examples])
        rows = np.full((len(examples), length), fill, dtype=np.int64)
        for i, example in enumerate(examples):
            rows[i, : lengths[i]] = example.ids_T[: lengths[i]]
            at = np.nonzero(example.labels_T[1:] != IGNORE)[0]
            row_N = start + np.arange(block.members) * len(examples) + i
            targets.add(row_N * length + at[:, None], example.labels_T[at + 1], i)
        ids.append(np.tile(rows, (block.members, 1)))
        mask.append(np.tile(np.arange(length) < lengths[:, None], (block.members, 1)))
        targets.close(block)
        start += block.members * len(examples)
    return PaddedRows(
        tuple(blocks),
        _tensor(ids, device),
        _tensor(mask, device).long(),
        targets.tensors(device),
    )


def _by_length(batch: Batch) -> list[int]:
    """The order in which a packed block holds its examples: those of equal length together."""
    return sorted(range(len(batch.examples)), key=lambda i: batch.examples[i].read)


def _tensor(parts: list[np.ndarray], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(device)


class _TargetList:
    """Gathers the targets of one block after another."""

    def __init__(self) -> None:
        self.index: list[np.ndarray] = []
        self.token: list[np.ndarray] = []
        self.cell: list[np.ndarray] = []
        self.open: list[tuple[np.ndarray, int]] = []
        self.cells = 0

    def add(self, index_tN: np.ndarray, token_t: np.ndarray, example: int) -> None:
        self.index.append(index_tN.reshape(-1))
        self.token.append(np.repeat(token_t, index_tN.shape[1]))
        self.open.append((index_tN, example))

    def close(self, block: Block) -> None:
        rows = len(block.batch.examples)
        for index_tN, example in self.open:
            cell_N = self.cells + np.arange(block.members) * rows + example
            self.cell.append(np.broadcast_to(cell_N, index_tN.shape).reshape(-1))
        self.open.clear()
        self.cells += rows * block.members

    def tensors(self, device: torch.device) -> Targets:
        index, token, cell = (_tensor(p, device) for p in (self.index, self.token, self.cell))
        return Targets(index, token, cell, self.cells)
