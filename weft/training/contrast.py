"""Two members on the same tokens: how far their next-token distributions are apart.

Shapes: E examples, S supervised positions of one forward, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from weft.core.batch import batches_of
from weft.core.errors import InputError, NumericError
from weft.core.table import ScoreTable
from weft.data.split import Split
from weft.engines.local import LocalEngine
from weft.model.bank import Bank
from weft.model.divergence import divergence
from weft.model.forward import make_rows, target_logits
from weft.model.rows import Block
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
    split: Split,
    *,
    rows: int | None,
    batch_size: int,
    watch: Watch | None = None,
) -> Contrast:
    """Teacher-forced divergences between the two members of `pair` on a split's examples.

    Both see the same reference tokens, so position by position the same question is answered.
    A logit that is not finite is a `NumericError` that says whose, on which example and where.
    """
    if len(pair.members) != 2:
        raise InputError(f"two are compared, not {len(pair.members)}: {', '.join(pair.members)}")
    examples = split.examples[:rows]
    weft = Weft(pair.to(engine.base.device), engine.stack)
    sums_QE = np.zeros((len(QUANTITIES), len(examples)))
    largest = dict.fromkeys(QUANTITIES[:-1], 0.0)
    for number, batch in enumerate(batches_of(examples, batch_size)):
        made = make_rows(engine.base, [Block(0, 2, batch)])
        logits_SV = target_logits(engine.base, weft, made)
        _refuse_not_finite(pair, batch.ids, made, logits_SV)
        # one target after the other, and within a target member A before member B
        found = divergence(logits_SV[0::2], logits_SV[1::2])
        example_S = made.targets.cell_S[0::2].cpu().numpy()
        column = number * batch_size
        for row, name in enumerate(QUANTITIES):
            value_S = getattr(found, name).double().cpu().numpy()
            sums = np.bincount(example_S, value_S, len(batch.examples))
            sums_QE[row, column : column + len(batch.examples)] = sums
            if name in largest:
                largest[name] = max(largest[name], float(value_S.max()))
        if watch:
            watch(min(column + batch_size, len(examples)), len(examples))
    count_QE = np.broadcast_to([e.supervised for e in examples], sums_QE.shape)
    ids = tuple(example.id for example in examples)
    return Contrast(ScoreTable(QUANTITIES, ids, sums_QE, count_QE), largest)


def _refuse_not_finite(
    pair: Bank, ids: tuple[str, ...], made: Rows, logits_SV: torch.Tensor
) -> None:
    bad_S = ~logits_SV.isfinite().all(dim=1)
    if not bad_S.any():
        return
    first = int(bad_S.nonzero()[0])
    member = pair.members[first % 2]
    cell = int(made.targets.cell_S[first])
    value = logits_SV[first][~logits_SV[first].isfinite()][0].item()
    raise NumericError(
        f"{member}: a logit is {value} on {ids[cell % len(ids)]}, at supervised position "
        f"{first // 2} of its batch ({int(bad_S.sum())} of {len(bad_S)} positions)",
        hint="`weft inspect` says whether the adapter's weights are finite; try dtype float32",
    )
