"""Two members on the same tokens: how far their next-token distributions are apart.

Shapes: E examples, P supervised positions of one forward, S = 2P targets (each
position under both members), c targets of one chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from weft.core.batch import IGNORE, Batch, Example, batches_of
from weft.core.errors import InputError, NumericError
from weft.core.table import ScoreTable
from weft.engines.local import LocalEngine
from weft.model.bank import Bank
from weft.model.base import Base
from weft.model.divergence import divergence
from weft.model.forward import make_rows, packed_hidden, target_logits
from weft.model.losses import chunks
from weft.model.products import product
from weft.model.rows import Block, PackedRows
from weft.model.weaving import Rows, Weft
from weft.training.evaluate import Watch

QUANTITIES = ("kl_ab", "kl_ba", "js", "l2", "agree")


@dataclass(frozen=True, eq=False)
class Contrast:
    """Sums over each example's supervised positions, one table row a quantity (`QUANTITIES`)."""

    table: ScoreTable
    largest: dict[str, float]  # at any one position


@torch.inference_mode()
def contrast(
    engine: LocalEngine,
    pair: Bank,
    examples: Sequence[Example],
    *,
    batch_size: int,
    watch: Watch | None = None,
) -> Contrast:
    """Teacher-forced divergences between the two members of `pair` on examples.

    Both see the same reference tokens, so position by position the same question is answered.
    A logit that is not finite is a `NumericError` that says whose, on which example and where.
    """
    if len(pair.members) != 2:
        raise InputError(f"two are compared, not {len(pair.members)}: {', '.join(pair.members)}")
    weft = Weft(pair.to(engine.base.device))
    sums_QE = np.zeros((len(QUANTITIES), len(examples)))
    largest = dict.fromkeys(QUANTITIES[:-1], 0.0)
    for number, batch in enumerate(batches_of(examples, batch_size)):
        made = make_rows(engine.base, [Block(0, 2, batch)])
        values_QP = _position_values(engine.base, weft, made, pair.members, batch)
        example_P = made.targets.cell_S[0::2].cpu().numpy()
        column = number * batch_size
        for row, (name, value_P) in enumerate(zip(QUANTITIES, values_QP, strict=True)):
            sums = np.bincount(example_P, value_P, len(batch.examples))
            sums_QE[row, column : column + len(batch.examples)] = sums
            if name in largest:
                largest[name] = max(largest[name], float(value_P.max()))
        if watch:
            watch(min(column + batch_size, len(examples)), len(examples))
    count_QE = np.broadcast_to([e.supervised for e in examples], sums_QE.shape)
    ids = tuple(example.id for example in examples)
    return Contrast(ScoreTable(QUANTITIES, ids, sums_QE, count_QE), largest)


def _position_values(
    base: Base, weft: Weft, made: Rows, members: Sequence[str], batch: Batch
) -> np.ndarray:
    """Every quantity at every position, [Q, P]; the logits of all positions never exist at once."""
    parts = []
    for at, logits_cV in _logit_chunks(base, weft, made):
        _refuse_not_finite(members, batch, made.targets.cell_S, at.start, logits_cV)
        found = divergence(logits_cV[0::2], logits_cV[1::2])
        parts.append(torch.stack([getattr(found, name).cpu().double() for name in QUANTITIES]))
    return torch.cat(parts, dim=1).numpy()


def _logit_chunks(base: Base, weft: Weft, made: Rows) -> Iterator[tuple[slice, torch.Tensor]]:
    """The targets a chunk at a time, with their logits.

    Targets stand one after the other, and within a target member A before member B: a chunk
    holds both of every target.
    """
    if not isinstance(made, PackedRows):
        logits_SV = target_logits(base, weft, made)
        yield slice(0, len(logits_SV)), logits_SV
        return
    hidden_SD = packed_hidden(base, weft, made).index_select(0, made.targets.index_S)
    weight_VD, bias_V = base.head
    for pairs in chunks(len(hidden_SD) // 2, 2 * weight_VD.shape[0]):
        at = slice(2 * pairs.start, 2 * pairs.stop)
        yield at, product(hidden_SD[at], weight_VD, bias_V).float()


def _refuse_not_finite(
    members: Sequence[str],
    batch: Batch,
    cell_S: torch.Tensor,
    start: int,
    logits_cV: torch.Tensor,
) -> None:
    bad_c = ~logits_cV.isfinite().all(dim=1)
    if not bad_c.any():
        return
    first = int(bad_c.nonzero()[0])
    logit_V = logits_cV[first]
    value = logit_V[~logit_V.isfinite()][0].item()
    cell = cell_S[start + first]
    example = batch.examples[int(cell) % len(batch.examples)]
    earlier = int((cell_S[: start + first] == cell).sum())  # targets of the same text
    token = np.nonzero(example.labels_T[1:] != IGNORE)[0][earlier] + 1
    raise NumericError(
        f"{members[first % 2]}: a logit is {value} on {example.id}, where its token {token} is "
        "predicted (counted from 0)",
        hint="`weft inspect` says whether the adapter's weights are finite; try dtype float32",
    )
