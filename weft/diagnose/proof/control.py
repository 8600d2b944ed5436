"""The positive control: a replica must reproduce what its side recorded, else it proves nothing.

Shapes: V vocabulary, L blocks, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from weft.diagnose.proof.fed import Seen
from weft.diagnose.proof.feeding import readings
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.measures import Measure, kl_S, predicted
from weft.diagnose.proof.replica import Replica
from weft.diagnose.words import counted

SLACK = 10.0
"""A recorded computation went other ways than its replica (a cache, another batch): so many floors
are rounding still."""


@dataclass(frozen=True)
class Control:
    """How far a replica is from its recording, in mean nats over positions."""

    name: str
    prompts: float | None  # at prompts' ends; None: nothing was recorded there
    decoded: float | None  # along completions
    floor: float
    positions: int = 0

    @property
    def value(self) -> float:
        """The larger of both."""
        return max(self.prompts or 0.0, self.decoded or 0.0)

    @property
    def seen(self) -> bool:
        """Whether there was anything to compare with."""
        return self.positions > 0

    @property
    def holds(self) -> bool:
        """Whether the replica computes what was recorded."""
        return self.value <= SLACK * self.floor

    @property
    def words(self) -> str:
        """As a sentence."""
        if not self.seen:
            return f"{self.name}'s recording holds no distributions to compare its replica with"
        if self.holds:
            return (
                f"{self.name}'s replica reproduces its recording: mean KL {self.value:.2g} nats "
                f"at {counted(self.positions, 'position')}"
            )
        return (
            f"{self.name} computes something that its recording does not explain: mean KL "
            f"{self.value:.2g} nats between replica and recording (floor {self.floor:.2g})"
        )


def control(engine: Engine, replica: Replica, seen: Sequence[Seen], floor: float) -> Control:
    """Compare along the side's own completions."""
    prompts, decoded = [], []
    tokens = tuple(
        row.tokens[: max(its.decoded)] if its.decoded else ()
        for row, its in zip(replica.rows, seen, strict=True)
    )
    wanted = [each.logits_V is not None or each.decoded for each in seen]
    if any(wanted):
        measure = Measure((1,) * len(tokens), tokens)
        for log_SV, its in zip(predicted(engine, replica, measure), seen, strict=True):
            if its.logits_V is not None:
                prompts.append(_apart(its.logits_V, log_SV[0]))
            for step, logits_V in (its.decoded or {}).items():
                if step < len(log_SV):
                    decoded.append(_apart(logits_V, log_SV[step]))
    return Control(
        replica.name,
        float(np.mean(prompts)) if prompts else None,
        float(np.mean(decoded)) if decoded else None,
        floor,
        len(prompts) + len(decoded),
    )


def _apart(recorded_V: np.ndarray, log_V: torch.Tensor) -> float:
    log_r = torch.from_numpy(np.array(recorded_V)).double().log_softmax(-1)
    return float(kl_S(log_r[None], log_V[None])[0])


def departs(engine: Engine, replica: Replica, seen: Sequence[Seen], floor: float) -> int | None:
    """The first block after which a replica's hidden state is not the recorded one.

    0 is what embedding gives, n what block n gives (counted from 1). None if all are the same, or
    none was recorded.
    """
    kept = [n for n, its in enumerate(seen) if its.hidden_LD is not None]
    if not kept:
        return None
    own_LND = hidden(engine, replica, kept)
    if own_LND is None:
        return None
    recorded_LND = np.stack([np.asarray(seen[n].hidden_LD, np.float32) for n in kept], 1)
    if own_LND.shape != recorded_LND.shape:
        return None
    gap_LN = np.linalg.norm(own_LND - recorded_LND, axis=-1)
    size_LN = np.maximum(np.linalg.norm(recorded_LND, axis=-1), 1e-30)
    error_L = (gap_LN / size_LN).max(1)
    return next((layer for layer, error in enumerate(error_L) if not error <= floor), None)


def hidden(engine: Engine, replica: Replica, rows: Sequence[int]) -> np.ndarray | None:
    """Hidden states [L + 1, N, D] at the ends of prompts; None where its moments differ in size."""
    found: dict[int, np.ndarray] = {}
    for number, moment in enumerate(replica.moments):
        mine = [n for n in rows if replica.rows[n].moment == number]
        if mine:
            read = [readings(replica.rows[n], replica.context)[0] for n in mine]
            made_LND = engine.hidden(moment.base, moment.adapter, read)
            found |= {n: made_LND[:, i] for i, n in enumerate(mine)}
    if len({each.shape for each in found.values()}) != 1:
        return None
    return np.stack([found[n] for n in rows], 1)
