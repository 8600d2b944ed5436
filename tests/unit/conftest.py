"""Experiments on disk without training: runs as they are left, with numbers that a test knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weft.core.files import write_json
from weft.core.table import ScoreTable
from weft.runs.experiment import BASE, DIVERGED, ArmRecord, ExperimentRecord
from weft.runs.layout import ExperimentLayout
from weft.runs.manifest import Manifest
from weft.runs.writer import RunWriter

SETTINGS = {
    "method": "mezo",
    "optimiser": "sgd",
    "lr": 1e-4,
    "rank": 1,
    "alpha": 16.0,
    "scale": 16.0,
    "batch_size": 8,
    "objective": {"name": "choice", "loss": "candidates"},
}


@pytest.fixture
def made_experiment(tmp_path: Path) -> Callable[..., Path]:
    """Write an experiment: `arms` maps names to the accuracy of each seed, or to what diverged.

    Every arm takes 10 steps of 2 forwards; its validation loss at step 0, 5 and 10 is
    1, 0.9 and 0.8 + seed / 100, plus `shift` for each arm before it.
    """

    def make(
        arms: dict[str, list[float] | str],
        *,
        commits: dict[str, list[int]] | None = None,
        shift: float = 0.1,
        seeds: int | None = None,
        evaluated: bool = True,
        kept: int = 5,
        scored: bool = True,
        **changes: Any,
    ) -> Path:
        layout = ExperimentLayout(tmp_path / "experiment")
        counts = [len(each) for each in arms.values() if isinstance(each, list)]
        count = seeds or counts[0]
        members = _members(count)
        record = ExperimentRecord(
            name="made",
            text="",
            seeds=tuple(range(count)),
            budget={"forwards": 20},
            reference=next(iter(arms)),
            x="forwards",
            arms={
                name: ArmRecord(
                    slug=f"arm-{number}",
                    config={"arm": number, "batch_size": 8},
                    origins={},
                    members=members,
                    steps=10,
                    forwards_per_step=2,
                    settings=SETTINGS,
                )
                for number, name in enumerate(arms)
            },
            groups=(tuple(arms),),
        )
        record = record.model_copy(update={"status": "finished", **changes})
        record.save(layout.record)
        for number, (name, scores) in enumerate(arms.items()):
            _run(
                layout.arm(f"arm-{number}").root,
                members,
                (commits or {}).get(name, []),
                number * shift,
                4 if isinstance(scores, str) else 10,
                evaluated,
                kept,
            )
            if not scored:
                continue
            if isinstance(scores, str):
                write_json(layout.score(f"arm-{number}"), {DIVERGED: scores})
            else:
                write_json(layout.score(f"arm-{number}"), _scores(list(members), scores))
        if scored:
            write_json(layout.score(BASE), _scores([BASE], [0.5]))
        return layout.root

    return make


def _members(seeds: int) -> dict[str, int]:
    return {"adapter": 0} if seeds == 1 else {f"seed-{seed}": seed for seed in range(seeds)}


def _scores(members: list[str], values: list[float]) -> dict[str, Any]:
    return {
        "split": "test",
        "rows": 100,
        "metric": "choice",
        "members": {
            member: {"choice": value, "eval_loss": 1 - value}
            for member, value in zip(members, values, strict=True)
        },
    }


def _run(
    root: Path,
    members: dict[str, int],
    commits: list[int],
    shift: float,
    steps: int,
    evaluated: bool,
    kept_step: int,
) -> None:
    alone = len(members) == 1
    with RunWriter.create(root, Manifest(name="run")) as writer:
        for step in range(steps + 1):
            if step % 5 == 0 and evaluated:
                sums = [[1 - step / 50 + shift + seed / 100] for seed in members.values()]
                table = ScoreTable(tuple(members), ("v:1",), sums, [[1]] * len(members))
                writer.table(f"valid-step-{step}", table)
                hits = ScoreTable(
                    tuple(members), ("v:1",), [[1]] * len(members), [[2]] * len(members)
                )
                writer.table(f"choice-step-{step}", hits)
            if step == 0:
                continue
            for member, seed in members.items():
                line = {"step": step, "loss_perturbed": 2.0 + seed, "forwards": 2 * step}
                line |= {"seconds": step / 10}
                writer.step(line | ({} if alone else {"member": member}))
                if step in commits:
                    writer.event("commit", step=step, member=member, round=0)
        kept = {"step": kept_step}
        if commits:
            kept["commits"] = sum(step <= kept_step for step in commits)
        for member in members:
            writer.result("eval" if alone else f"eval-{member}", kept)
        writer.finish("finished" if steps == 10 else "failed")
