"""What of A belongs to what of B: rows of passes, completions, steps, models, adapted modules.

Rows are matched by their token ids without padding, so batch size, batch order and padding make no
difference; what no ids match is matched by containment (one text is the other and something
before, after or within it), then by order.

Shapes: B rows, T positions, V vocabulary, L blocks, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from weft.diagnose.compare.matching import Ids, Matching, akin, matched, stripped
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.runs.evidence import AdapterModule, Generation, Pass, Snapshot, TrainStep, Weights

MOST = 64
"""Rows without an equal that are compared one by one."""


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a pass: its real tokens are those at columns `start` to `stop`."""

    side: Evidence
    of: Pass
    number: int
    all_ids: Ids  # with padding
    start: int
    stop: int
    pads: frozenset[int] = frozenset()

    @property
    def ids(self) -> Ids:
        """Without padding."""
        return self.all_ids[self.start : self.stop]

    @property
    def key(self) -> Ids:
        """What it is matched by: the ids, without pad ids at either end."""
        return stripped(self.all_ids, self.pads)

    @cached_property
    def mask(self) -> np.ndarray | None:
        """Bool [T], which of the fed positions may be attended to; None if no mask was given."""
        whole = self._read(self.of.mask)
        return None if whole is None else whole[-len(self.all_ids) :] != 0

    @cached_property
    def positions(self) -> np.ndarray | None:
        """[stop - start], of the real tokens, as the model used them."""
        whole = self._read(self.of.positions, spread=True)
        return None if whole is None else whole[self.start : self.stop]

    @cached_property
    def labels(self) -> np.ndarray | None:
        """[stop - start], of the real tokens; -100 where unsupervised."""
        whole = self._read(self.of.labels)
        return None if whole is None else whole[self.start : self.stop]

    @cached_property
    def logits(self) -> np.ndarray | None:
        """[V] float32, at the last real position."""
        return self._read(self.of.logits)

    @cached_property
    def nll(self) -> np.ndarray | None:
        """[stop - start - 1] nats, of each real token after the first."""
        whole = self._read(self.of.nll)
        return None if whole is None else whole[self.start : self.stop - 1]

    @cached_property
    def hidden(self) -> np.ndarray | None:
        """[L + 1, D], at the last real position."""
        return self._read(self.of.hidden, axis=1)

    @cached_property
    def sketch(self) -> np.ndarray | None:
        """[L + 1, stop - start, 8], of the real positions."""
        whole = self._read(self.of.sketch, axis=1)
        return None if whole is None else whole[:, self.start : self.stop]

    @property
    def padding(self) -> int:
        """How many of its positions are padding."""
        return len(self.all_ids) - (self.stop - self.start)

    @property
    def attended_padding(self) -> int:
        """How many padding positions before the last real token are open to attention."""
        return self.start if self.mask is None else int(self.mask[: self.start].sum())

    @property
    def hidden_tokens(self) -> int:
        """How many real tokens the mask hides."""
        return 0 if self.mask is None else int((~self.mask[self.start : self.stop]).sum())

    def _read(self, name: str | None, axis: int = 0, spread: bool = False) -> np.ndarray | None:
        """This row of an array of the pass, if it was kept for this row."""
        if name is None:
            return None
        whole = self.side.array(name)
        if spread and whole.ndim == 1:
            return whole
        if spread and whole.shape[0] == 1:
            return whole[0]
        if whole.ndim <= axis or whole.shape[axis] <= self.number:
            return None
        return whole.take(self.number, axis=axis)


@dataclass(frozen=True, eq=False)
class Said:
    """One completion: a row of a generation."""

    side: Evidence
    of: Generation
    number: int
    pads: frozenset[int] = field(default=frozenset())

    @property
    def prompt(self) -> Ids:
        """Ids of the prompt, without padding."""
        return self.of.prompts[self.number]

    @property
    def key(self) -> Ids:
        """What it is matched by."""
        return stripped(self.prompt, self.pads)

    @property
    def tokens(self) -> Ids:
        """The new ones."""
        return self.of.tokens[self.number]

    @property
    def text(self) -> str | None:
        """What they spell, where that was recorded."""
        return self.of.texts[self.number] if self.number < len(self.of.texts) else None

    @property
    def ended(self) -> str:
        """Why it ended: eos, length, stop or unknown."""
        return self.of.ended[self.number] if self.number < len(self.of.ended) else "unknown"


@lru_cache(maxsize=4)
def pad_ids(pair: Pair) -> frozenset[int]:
    """Ids that pad on either side: those of tokenizers, and the one id that masks hide."""
    found = set()
    for _, side in pair.sides:
        found |= {seen.special["pad"] for seen in side.tokenizers if "pad" in seen.special}
        hidden: set[int] = set()
        for seen in side.passes:
            if seen.ids is None or seen.mask is None:
                continue
            ids_BT, mask = side.array(seen.ids), side.array(seen.mask)
            if mask.ndim == 2 and mask.shape[0] == ids_BT.shape[0]:
                hidden |= {int(i) for i in np.unique(ids_BT[mask[:, -ids_BT.shape[1] :] == 0])}
        found |= hidden if len(hidden) == 1 else set()
    return frozenset(found)


def rows_of(side: Evidence, passes: Iterable[Pass], pads: frozenset[int]) -> tuple[Row, ...]:
    """All rows of `passes` whose ids were recorded, in order."""
    texts = {each.ids for each in side.encoded}
    found = []
    for seen in passes:
        if seen.ids is None:
            continue
        mask = None if seen.mask is None else side.array(seen.mask)
        for number, ids_T in enumerate(side.array(seen.ids)):
            ids = tuple(int(i) for i in ids_T)
            mask_T = (
                mask[number, -len(ids) :]
                if mask is not None and mask.ndim == 2 and number < mask.shape[0]
                else None
            )
            start, stop = _real(ids, mask_T, pads, texts)
            found.append(Row(side, seen, number, ids, start, stop, pads))
    return tuple(found)


def _real(
    ids: Ids, mask_T: np.ndarray | None, pads: frozenset[int], texts: Collection[Ids]
) -> tuple[int, int]:
    """Where the real tokens are: as an encoded text says, else the mask, else the pad ids."""
    core = stripped(ids, pads)
    before = next((i for i, each in enumerate(ids) if each not in pads), len(ids))
    after = before + len(core)
    for left in range(min(before, 2), -1, -1):
        for right in range(min(len(ids) - after, 2), -1, -1):
            if ids[before - left : after + right] in texts:
                return before - left, after + right
    if mask_T is not None and 0 < (mask_T != 0).sum() < len(ids):
        open_ = np.flatnonzero(mask_T)
        return int(open_[0]), int(open_[-1]) + 1
    return (before, after) if core else (0, len(ids))


def prompt_passes(side: Evidence) -> tuple[Pass, ...]:
    """Passes without gradients that read a whole text for the first time: no decoding steps."""
    later = {index for each in side.generations for index in each.passes[1:]}
    return tuple(
        seen
        for seen in side.passes
        if not seen.grad and seen.phase != "train" and seen.past == 0 and seen.index not in later
    )


@lru_cache(maxsize=4)
def prompt_rows(pair: Pair) -> Matching[Row]:
    """The rows of both sides' prompt passes."""
    pads = pad_ids(pair)
    a, b = (rows_of(side, prompt_passes(side), pads) for _, side in pair.sides)
    return matched(a, b, key=lambda row: row.key)


@lru_cache(maxsize=4)
def train_rows(pair: Pair) -> Matching[Row]:
    """The rows that both sides trained on, at whatever step.

    A row without an equal is matched with the one that shares most of what is not in every row;
    where there is none, or the same batches came in another order, the row came up on one side
    alone, and is left out.
    """
    pads = pad_ids(pair)
    a, b = (
        _once(rows_of(side, (each for each in side.passes if each.phase == "train"), pads))
        for _, side in pair.sides
    )
    keys_a, keys_b = ({row.key for row in rows} for rows in (a, b))
    left_a = [row for row in a if row.key not in keys_b]
    left_b = [row for row in b if row.key not in keys_a]
    by_key = {row.key: row for row in b}
    same = [(row, by_key[row.key]) for row in a if row.key in keys_b]
    batches = [sorted(step.batch for step in side.steps) for _, side in pair.sides]
    if batches[0] and all(batches[0]) and batches[0] == batches[1]:
        return Matching(tuple(same), exact=len(same))
    known_a, known_b = (
        {stripped(each.ids, pads) for each in side.encoded} for _, side in pair.sides
    )
    alike = akin(
        [row for row in left_a if row.key not in known_b][:MOST],
        [row for row in left_b if row.key not in known_a][:MOST],
        key=lambda row: row.key,
    )
    order = {row.key: number for number, row in enumerate(a)}
    pairs = sorted([*same, *alike], key=lambda two: order[two[0].key])
    return Matching(tuple(pairs), exact=len(same))


def _once(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Each text once."""
    return tuple({row.key: row for row in reversed(tuple(rows))}.values())[::-1]


def step_rows(pair: Pair, a: TrainStep, b: TrainStep) -> Matching[Row]:
    """The rows that two training steps saw."""
    pads = pad_ids(pair)
    rows_a, rows_b = (
        rows_of(side, (each for each in side.passes if each.index in step.passes), pads)
        for side, step in ((pair.a, a), (pair.b, b))
    )
    return matched(rows_a, rows_b, key=lambda row: row.key)


@lru_cache(maxsize=4)
def completions(pair: Pair) -> Matching[Said]:
    """The completions of both sides, matched by their prompts."""
    pads = pad_ids(pair)
    a, b = (
        tuple(
            Said(side, each, number, pads)
            for each in side.generations
            for number in range(len(each.prompts))
        )
        for _, side in pair.sides
    )
    return matched(a, b, key=lambda said: said.key)


def steps(pair: Pair) -> Matching[TrainStep]:
    """Training steps by number; of a step that was taken again, the last counts."""
    a, b = ({each.step: each for each in side.steps} for _, side in pair.sides)
    return Matching(
        pairs=tuple((a[k], b[k]) for k in sorted(a.keys() & b.keys())),
        only_a=tuple(a[k] for k in sorted(a.keys() - b.keys())),
        only_b=tuple(b[k] for k in sorted(b.keys() - a.keys())),
    )


def models(pair: Pair) -> Matching[str]:
    """Keys of models: those with tensors of the same names and shapes first, then by order."""
    a, b = (
        tuple((key, _form(each)) for key, each in first_weights(side).items())
        for _, side in pair.sides
    )
    found = matched(a, b, key=lambda item: item[1], contained=lambda *_: False)
    return Matching(
        pairs=tuple((x[0], y[0]) for x, y in found.pairs),
        only_a=tuple(key for key, _ in found.only_a),
        only_b=tuple(key for key, _ in found.only_b),
        exact=found.exact,
    )


def first_weights(side: Evidence) -> dict[str, Weights]:
    """What was seen of each model when it was first used."""
    found: dict[str, Weights] = {}
    for each in side.weights:
        found.setdefault(each.model, each)
    return found


def _form(weights: Weights) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted((name, seen.shape) for name, seen in weights.tensors.items()))


def modules(a: Snapshot, b: Snapshot) -> Matching[str]:
    """Names of adapted modules, by name; without what stands before the blocks if none is common.

    Of a pair, the first name is that in A and the second that in B.
    """
    names_a, names_b = list(a.modules), list(b.modules)
    key: Callable[[str], str] = str
    if not set(names_a) & set(names_b):
        key = from_blocks
    of_b = {key(name): name for name in names_b}
    pairs = [(name, of_b[key(name)]) for name in names_a if key(name) in of_b]
    paired_a, paired_b = {x for x, _ in pairs}, {y for _, y in pairs}
    return Matching(
        pairs=tuple(pairs),
        only_a=tuple(name for name in names_a if name not in paired_a),
        only_b=tuple(name for name in names_b if name not in paired_b),
        exact=sum(x == y for x, y in pairs),
    )


def adapted(a: Snapshot, b: Snapshot) -> tuple[tuple[str, AdapterModule, AdapterModule], ...]:
    """Matched modules of two snapshots, under A's names."""
    return tuple((x, a.modules[x], b.modules[y]) for x, y in modules(a, b).pairs)


def from_blocks(name: str) -> str:
    """`layers.3.mlp.up_proj` of `model.layers.3.mlp.up_proj`."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[max(at - 1, 0) :])
