"""What two ranks do, and what one process does in their place; `test_ranks.py` starts them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from weft.core.errors import InputError, WeftError
from weft.core.launch import place
from weft.engines.ranks import Ranks, joined
from weft.training.fit import Progress
from weft.training.resolve import Resolved, resolve
from weft.training.train import resume, train

BACKPROP = ("adapter.dropout=0.1", "optimiser.lr=1e-2")
MEZO = (
    "method.name=mezo",
    "method.eps=1e-2",
    "adapter.dropout=0",
    "optimiser.name=sgd",
    "optimiser.lr=1",
    "optimiser.warmup_ratio=0",
)
BOOSTED = (*MEZO, "adapter.rank=1", "adapter.alpha=16", "boost.optimiser=keep")
QUICK = {
    "three rows, two seeds": (*BACKPROP, "batch_size=3", "seeds=[0,1]"),
    "mezo, two seeds": (*MEZO, "seeds=[0,1]", "method.directions=3"),
}
THOROUGH = {
    "backprop": BACKPROP,
    "one row": (*BACKPROP, "batch_size=1"),
    "row by row": (*BACKPROP, "batch_size=5", "micro_batch_size=1"),
    "mezo": MEZO,
    "mezo, one row, one side": (*MEZO, "batch_size=1", "method.sides=one"),
    "boosted": (*BOOSTED, "boost.steps_per_iteration=3", "seeds=[0,1]"),
    "boosted, plateau": (*BOOSTED, "boost.plateau.patience=1", "eval.every=1"),
    "boosted, into weights": (*BACKPROP, "boost.steps_per_iteration=3", "boost.merge=weights"),
}
CASES = QUICK | THOROUGH
ES = ("method.name=es", "adapter.dropout=0")
LONG = (*BACKPROP, "steps=12")
DIVERGES = ("optimiser.lr=1e38", "optimiser.warmup_ratio=0")
STOPPED_AT, KILLED_AT = 4, 7
"""Steps of `LONG`, with checkpoints after every third."""


def resolved(base: str, rows: str, *overrides: str) -> Resolved:
    """A short run on a tiny base."""
    short = [
        f"base={base}",
        f"data.path={rows}/train.jsonl",
        f"data.valid_path={rows}/valid.jsonl",
        "data.max_length=128",
        "adapter.rank=2",
        "batch_size=4",
        "steps=6",
        "eval.every=3",
        "checkpoint_every=3",
    ]
    return resolve("instruct", [*short, *overrides])


class Attempts:
    """Things to try, in every process; what came of each is written for the test to read."""

    def __init__(self, base: str, rows: str, root: Path) -> None:
        self.base, self.rows, self.root = base, rows, root

    def attempt(self, name: str, work: Callable[[Ranks], object]) -> None:
        """Meet, do `work`, and write its value or its error, and whether this rank told that."""
        told: list[str] = []
        found: dict[str, object] = {"told": told}
        try:
            with joined(place(), lambda error: told.append(error.problem)) as ranks:
                found["value"] = work(ranks)
        except WeftError as error:
            found |= {"problem": error.problem, "code": error.exit_code}
        (self.root / f"{name}.{place().rank}.json").write_text(json.dumps(found))

    def trained(self, ranks: Ranks, name: str, *overrides: str, **more: object) -> int:
        """How many steps a run took."""
        run = resolved(self.base, self.rows, *overrides)
        return train(run, self.root / name, ranks=ranks, **more).step  # type: ignore[arg-type]

    def quick(self) -> None:
        """What is tested every time."""
        self.attempt("exchange", exchange)
        self.attempt("wrong", self._wrong_on_one)
        self.attempt("cases", lambda ranks: [self.trained(ranks, *c) for c in _named(QUICK)])

    def thorough(self) -> None:
        """What takes longer; at the end one of the processes is killed."""
        self.attempt("cases", lambda ranks: [self.trained(ranks, *c) for c in _named(THOROUGH)])
        self.attempt("stopped", self._stopped)
        self.attempt("went on", lambda ranks: resume(self.root / "stopped", ranks=ranks).step)
        self.attempt("unlike", lambda ranks: ranks.refuse_unlike({"a": "1", "b": f"{ranks.rank}"}))
        self.attempt("es", lambda ranks: self.trained(ranks, "es", *ES))
        self.attempt("diverged", lambda ranks: self.trained(ranks, "diverged", *DIVERGES))
        self.attempt("occupied", lambda ranks: self.trained(ranks, "backprop"))
        self.attempt("killed", self._killed)

    def _wrong_on_one(self, ranks: Ranks) -> None:
        if ranks.rank == 1:
            raise InputError("there is no such file here")
        ranks.any(False)

    def _stopped(self, ranks: Ranks) -> int:
        return self.trained(ranks, "stopped", *LONG, watch=_signal(ranks, STOPPED_AT, "SIGINT"))

    def _killed(self, ranks: Ranks) -> int:
        return self.trained(ranks, "killed", *LONG, watch=_signal(ranks, KILLED_AT, "SIGKILL"))


def _named(cases: dict[str, tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [(name, *overrides) for name, overrides in cases.items()]


def _signal(ranks: Ranks, step: int, name: str) -> Callable[[Progress], None]:
    """Send a signal to the second rank, and to it alone, after a step."""

    def watch(progress: Progress) -> None:
        if ranks.rank == 1 and progress.step == step:
            os.kill(os.getpid(), getattr(signal, name))

    return watch


def exchange(ranks: Ranks) -> dict[str, object]:
    """Every way to send something, by its name."""
    rank = ranks.rank
    return {
        "sum": ranks.sum(torch.tensor([1.0, 10.0]) * (rank + 1)).tolist(),
        "sums": ranks.sums(np.array([[0.1, 2.0 * rank]])).tolist(),
        "any": [ranks.any(rank == 1), ranks.any(False)],
        "gather": ranks.gather("é" * (2 * rank)),
        "of_first": ranks.of_first(lambda: f"from {rank}".encode()).decode(),
        "nothing": ranks.of_first(lambda: b"").decode(),
    }


if __name__ == "__main__":
    which, base, rows, root = sys.argv[1:]
    getattr(Attempts(base, rows, Path(root)), which)()
