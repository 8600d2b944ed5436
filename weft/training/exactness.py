"""Whether what a boosted run wrote is the function that it trained: a certificate from forwards.

The files hold one adapter of many ranks; the run has a stack of committed adapters, or weights
into which they were merged, with one more adapter above it. Shapes: L lanes, K commits of a lane,
P parameters of one adapter, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from weft.core.batch import Batch, Example
from weft.core.errors import CheckFailed
from weft.formats.differences import rounding_unit
from weft.formats.peft import read_adapter
from weft.model.adapter import Adapter
from weft.model.bank import Bank
from weft.model.forward import make_rows, target_logits
from weft.model.rows import Block
from weft.model.weaving import Weft
from weft.training.convert import FORWARD_ROUNDING, UNITS
from weft.training.ground import Ground
from weft.training.job import Job
from weft.training.trial import examples, logits

CERTIFICATE = "certificate"
"""The name of the result that holds it."""

FACTORS = (3.0, 0.7)
"""With A times these and B divided by them, an adapter is the same function and rounds anew."""

SPREAD = 10
"""How much farther the run's own logits may be apart: its sums are in another order, too."""

REWRITTEN = f"{SPREAD} times what rounding changes when the same adapter is in other numbers"


def certify(
    job: Job, stacks: Sequence[torch.Tensor], theta_LP: torch.Tensor, paths: Mapping[str, Path]
) -> dict[str, Any]:
    """Compare the logits of each lane's files with those of its own stack [K, P] and adapter [P].

    `paths` has the adapter directories by lane. On a 16-bit base both sides round differently at
    every site, or once in the merged weights: the tolerance is that of the dtype. A base may
    amplify rounding a thousandfold through a strong adapter: where the tolerance is too small,
    rounding is measured on the adapter itself.
    """
    rows, largest, members, files = examples(job.base), 0.0, {}, []
    for ground in job.grounds(stacks):
        for lane in range(ground.start, ground.stop):
            name = job.names[lane]
            read = read_adapter(paths[name], job.base.sites).adapter
            files.append(read)
            effect, apart, positions = 0.0, 0.0, 0
            for row in rows:
                own_TV = _own(job, ground, lane, theta_LP, row)
                base_TV, read_TV = logits(job.base, (None, read), row)
                positions += len(base_TV)
                largest = _larger(largest, own_TV)
                effect = _larger(effect, own_TV - base_TV)
                apart = _larger(apart, own_TV - read_TV)
            members[name] = {
                "commits": len(stacks[lane]),
                "rank": max(slot.rank for slot in read.layout.slots),
                "positions": positions,
                "adapter_effect": effect,
                "largest_difference": apart,
            }
    effect = max(its["adapter_effect"] for its in members.values())
    differences = [its["largest_difference"] for its in members.values()]
    tolerance, reason = _tolerance(job, largest, effect)
    if not all(each <= tolerance for each in differences):
        measured = SPREAD * max(_rounding(job, read, rows) for read in files)
        tolerance, reason = max((tolerance, reason), (measured, REWRITTEN))
    return {
        "texts": len(rows),
        "largest_logit": largest,
        "tolerance": tolerance,
        "reason": reason,
        "holds": all(each <= tolerance for each in differences),
        "members": members,
    }


def refuse_inexact(certificate: Mapping[str, Any]) -> None:
    """`CheckFailed` where files and run are not the same function."""
    if certificate["holds"]:
        return
    member, worst = max(
        certificate["members"].items(), key=lambda each: each[1]["largest_difference"]
    )
    raise CheckFailed(
        f"the adapter that was written is not the one that was trained: logits of {member} differ "
        f"by up to {worst['largest_difference']:.3g}, where {certificate['tolerance']:.3g} is "
        f"allowed ({certificate['reason']}); the adapter's own effect is "
        f"{worst['adapter_effect']:.3g}",
        hint="the last checkpoint has the whole state; please report this, with the numbers above",
    )


@torch.no_grad()
def _own(job: Job, ground: Ground, lane: int, theta_LP: torch.Tensor, row: Example) -> torch.Tensor:
    """The logits [T, V] of a lane as it was trained: its adapter above its stack."""
    bank = Bank.from_flat([job.names[lane]], job.layout, theta_LP[lane : lane + 1])
    stacks = None if ground.stacks is None else ground.stacks.only([lane - ground.start])
    rows = make_rows(ground.base, [Block(0, 1, Batch((row,)))])
    return target_logits(ground.base, Weft(bank, stacks), rows)


def _rounding(job: Job, adapter: Adapter, rows: Sequence[Example]) -> float:
    """How far logits move when A is multiplied by a number and B divided by it."""
    same = []
    for factor in FACTORS:
        again = Adapter(adapter.layout, adapter.flat.clone())
        for a_rI, b_Or in again.sites.values():
            a_rI *= factor
            b_Or /= factor
        same.append(again)
    found = 0.0
    for row in rows:
        own_TV, *same_TV = logits(job.base, (adapter, *same), row)
        for again_TV in same_TV:
            found = _larger(found, again_TV - own_TV)
    return found


def _tolerance(job: Job, largest: float, effect: float) -> tuple[float, str]:
    """In float32 a strong adapter rounds by more than logits show: its parts partly cancel."""
    unit = rounding_unit(job.config.dtype)
    if job.config.dtype != "float32":
        share, reason = UNITS * unit, f"rounding to {job.config.dtype}, {UNITS} times {unit:.2g}"
        return share * largest, f"{reason}: {share:.2g} of the largest logit"
    return FORWARD_ROUNDING * (largest + 10 * effect), (
        f"rounding of float32 forwards: {FORWARD_ROUNDING:.2g} of the largest logit, and ten times "
        "that of the adapter's effect"
    )


def _larger(least: float, values: torch.Tensor) -> float:
    """The largest magnitude; NaN stays NaN."""
    found = float(values.abs().max())
    return found if found != found else max(least, found)
