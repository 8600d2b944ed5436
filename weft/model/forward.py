"""One forward of the base with adapters over it: scores, logits, or a loss to differentiate.

Shapes: S targets of the forward, V vocabulary, U some tokens of it, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from weft.model.base import Base
from weft.model.losses import HeadNLL, head_scores, logit_scores
from weft.model.products import product
from weft.model.rows import Block, PackedRows, pack, pad
from weft.model.weaving import Rows, Weft, woven


def make_rows(base: Base, blocks: Sequence[Block]) -> Rows:
    """The blocks in the arrangement that this base takes."""
    if base.packs:
        return pack(blocks, base.device)
    return pad(blocks, base.pad_id, base.device)


def target_nll(base: Base, weft: Weft, rows: Rows) -> torch.Tensor:
    """nll_S in fp32, differentiable with respect to the bank."""
    if isinstance(rows, PackedRows):
        hidden_SD = _target_hidden(base, weft, rows)
        weight_VD, bias_V = base.head
        return HeadNLL.apply(hidden_SD, weight_VD, bias_V, rows.targets.token_S)
    logits_SV = target_logits(base, weft, rows)
    return torch.nn.functional.cross_entropy(logits_SV, rows.targets.token_S, reduction="none")


@torch.no_grad()
def target_scores(base: Base, weft: Weft, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """(nll_S in fp32, correct_S), without a graph."""
    if isinstance(rows, PackedRows):
        return head_scores(_target_hidden(base, weft, rows), *base.head, rows.targets.token_S)
    return logit_scores(target_logits(base, weft, rows), rows.targets.token_S)


def target_logits(base: Base, weft: Weft, rows: Rows) -> torch.Tensor:
    """The logits [S, V] in fp32 from which the targets are predicted."""
    if isinstance(rows, PackedRows):
        hidden_SD = _target_hidden(base, weft, rows)
        return product(hidden_SD, *base.head).float()
    with woven(base.model, weft, rows):
        out = base.model(input_ids=rows.ids_RL, attention_mask=rows.mask_RL, use_cache=False)
    return out.logits.flatten(0, 1)[rows.targets.index_S].float()


def token_logits(base: Base, weft: Weft, rows: Rows, token_U: torch.Tensor) -> torch.Tensor:
    """The logits [S, U] in fp32 of a few tokens; differentiable with respect to the bank.

    Without padding only their rows of the head are read, and multiplied in fp32 whatever the
    base's dtype.
    """
    if not isinstance(rows, PackedRows):
        return target_logits(base, weft, rows).index_select(1, token_U)
    hidden_SD = _target_hidden(base, weft, rows).float()
    weight_VD, bias_V = base.head
    bias_U = None if bias_V is None else bias_V[token_U].float()
    return product(hidden_SD, weight_VD[token_U].float(), bias_U)


def _target_hidden(base: Base, weft: Weft, rows: PackedRows) -> torch.Tensor:
    return packed_hidden(base, weft, rows).index_select(0, rows.targets.index_S)


def packed_hidden(base: Base, weft: Weft, rows: PackedRows) -> torch.Tensor:
    """The last hidden state [T, D] at every position of a packed row."""
    with woven(base.model, weft, rows), weft.trunk.below(rows) if weft.trunk else nullcontext():
        out = base.body(
            input_ids=rows.ids_1T,
            position_ids=rows.positions_1T,
            use_cache=False,
            weft_rows=rows,
        )
    hidden_TD: torch.Tensor = out.last_hidden_state[0]
    return hidden_TD
