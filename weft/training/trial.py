"""Logits of a base and of adapters over it, on texts that come with Weft.

Shapes: N members, T tokens of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from weft.core.batch import Batch, Example
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.model.base import Base
from weft.model.forward import make_rows, target_logits
from weft.model.rows import Block
from weft.model.weaving import Weft

TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then asks: what is 12 + 30?",
    "Below is an instruction that describes a task. Write a response that completes it.\n\n"
    "### Instruction:\nName three colours.\n\n### Response:\nRed, green and blue.",
    "table: 1-10015132-16\ncolumns: Player, No., Position\nQ: Who wears number 42?\n"
    "A: SELECT Player FROM 1-10015132-16 WHERE No. = '42'",
    "def area(radius: float) -> float:\n    return 3.14159 * radius ** 2\n",
    "Der Regen fiel den ganzen Tag; am Abend las sie ein Buch über das Meer.",
)
"""Prose, an instruction, a table, code, another language."""

MOST = 64
"""Tokens of a text that are looked at."""


def examples(base: Base, texts: Sequence[str] = TEXTS) -> tuple[Example, ...]:
    """The texts as token ids, supervised everywhere; those too short to predict in are left out."""
    longest = min(MOST, base.context or MOST)
    rows = [np.array(base.tokenizer(text)["input_ids"][:longest], dtype=np.int64) for text in texts]
    return tuple(Example(f"text:{n}", ids, ids) for n, ids in enumerate(rows) if len(ids) > 1)


@torch.no_grad()
def logits(base: Base, members: Sequence[Adapter | None], example: Example) -> torch.Tensor:
    """The logits [N, T - 1, V] of every member on one example in one forward; None is the base."""
    bank = Bank.of({str(n): member for n, member in enumerate(members)}).to(base.device)
    rows = make_rows(base, [Block(0, len(members), Batch((example,)))])
    # one target after the other, and within a target one member after the other
    logits_SV = target_logits(base, Weft(bank), rows)
    return logits_SV.unflatten(0, (-1, len(members))).transpose(0, 1)


@dataclass(frozen=True)
class Apart:
    """How far source and result of a conversion are apart on real forwards."""

    texts: int
    positions: int
    largest_logit: float
    effect: float  # largest |source - base|
    difference: float  # largest |source - result|


def apart(base: Base, source: Adapter, result: Adapter | Base, rows: Sequence[Example]) -> Apart:
    """Run an adapter and what it became (an adapter over the same base, or a model of its own)."""
    positions, size, effect, difference = 0, 0.0, 0.0, 0.0
    for row in rows:
        if isinstance(result, Base):
            before_TV, source_TV = logits(base, (None, source), row)
            (result_TV,) = logits(result, (None,), row)
        else:
            before_TV, source_TV, result_TV = logits(base, (None, source, result), row)
        positions += len(source_TV)
        size = _larger(size, source_TV)
        effect = _larger(effect, source_TV - before_TV)
        difference = _larger(difference, source_TV - result_TV.to(source_TV.device))
    return Apart(len(rows), positions, size, effect, difference)


def _larger(least: float, values: torch.Tensor) -> float:
    """The largest magnitude; NaN stays NaN."""
    found = float(values.abs().max())
    return found if found != found else max(least, found)
