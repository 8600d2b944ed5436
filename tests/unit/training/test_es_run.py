"""A run by evolution strategies from start to end, on a tiny base with rewards of our own."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from weft.core.errors import InputError
from weft.formats.peft import TENSORS, read_adapter
from weft.runs.reader import RunReader
from weft.training.replay import replay
from weft.training.resolve import Resolved, resolve
from weft.training.train import resume, train

ROWS = 5
PER_GENERATION = 3
POPULATION = 4

VARIED = "def reward(row, completion):\n    return sum(map(ord, completion)) % 97 / 97\n"
"""Tells completions apart, and is always a number."""

UNRULY = """
import time
def reward(row, completion):
    if row["number"] == 1:
        raise ValueError("not this one")
    if row["number"] == 2:
        time.sleep(60)
    return sum(map(ord, completion)) % 97 / 97
"""


@pytest.fixture(scope="module")
def configured(small_base, tmp_path_factory) -> Callable[..., Resolved]:
    """A run of three generations over five rows, with overrides."""
    directory = tmp_path_factory.mktemp("es")
    for split in ("train", "valid"):
        rows = [{"prompt": f"the {i} cat", "completion": "", "number": i} for i in range(ROWS)]
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "varied.py").write_text(VARIED)
    (directory / "unruly.py").write_text(UNRULY)

    def make(*overrides: str, file: str = "varied") -> Resolved:
        values = {
            "base": small_base,
            "data": {"path": str(directory), "format": "prompt_completion"},
            "adapter": {"rank": 2, "targets": ["q_proj", "v_proj"]},
            "method": {
                "name": "es",
                "population": POPULATION,
                "samples_per_generation": PER_GENERATION,
                "noise": {"fraction": 0.5},
            },
            "objective": {
                "name": "reward",
                "file": str(directory / f"{file}.py"),
                "timeout": 0.5,
                "decoding": {"max_tokens": 4},
            },
            "optimiser": {"momentum": 0.5},
            "eval": {"every": 2},
            "checkpoint_every": 1,
            "steps": 3,
        }
        path = directory / "run.yaml"
        path.write_text(json.dumps(values))
        return resolve(str(path), overrides)

    return make


@pytest.fixture(scope="module")
def whole(configured, tmp_path_factory) -> Path:
    """A run that nobody disturbed. Nothing writes into it."""
    root = tmp_path_factory.mktemp("whole") / "run"
    train(configured(), root)
    return root


def tensors(root: Path) -> bytes:
    return (root / "adapter_last" / TENSORS).read_bytes()


def test_rewards_move_the_centre_and_are_recorded(whole):
    first, *_, last = RunReader(whole).evidence()
    assert len(first["rewards"]) == len(first["weights"]) == POPULATION
    assert sum(first["weights"]) == pytest.approx(0)
    assert first["key"] != last["key"]
    steps = RunReader(whole).steps()
    assert all(step["completions"] == (POPULATION + 1) * PER_GENERATION for step in steps)
    assert all(step["update_norm"] > 0 for step in steps if not step["flat"])


def test_its_records_alone_make_the_adapter_again_bit_for_bit(whole):
    verdicts = replay(whole).check()
    assert {verdict.which for verdict in verdicts} == {"adapter", "adapter_last"}
    assert all(verdict.difference is None for verdict in verdicts)


def test_an_interrupted_run_goes_on_to_the_same_bytes(configured, whole, tmp_path):
    def press(progress):
        if progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    assert not train(configured(), tmp_path / "run", watch=press).finished
    assert resume(tmp_path / "run").finished
    assert tensors(tmp_path / "run") == tensors(whole)
    kept = ("key", "rewards", "weights")
    lines, undisturbed = (
        [{key: line[key] for key in kept} for line in RunReader(root).evidence()]
        for root in (tmp_path / "run", whole)
    )
    assert lines == undisturbed


def test_generations_take_the_rows_in_turn_and_start_over(configured, tmp_path, monkeypatch):
    from weft.engines.population import Alone

    seen, grade = [], Alone.rewards

    def noted(self, generation, clock):
        seen.append([example.goal.row["number"] for example in generation.batch.examples])
        return grade(self, generation, clock)

    monkeypatch.setattr(Alone, "rewards", noted)
    train(configured("eval.every=0", "keep=last"), tmp_path / "run")
    assert seen == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]


def test_it_starts_from_a_given_adapter_and_keeps_a_copy_of_it(configured, whole, tmp_path):
    start = shutil.copytree(whole / "adapter_last", tmp_path / "start")
    begun = configured(f"start={start}", "steps=1", "eval.every=0", "keep=last")
    train(begun, tmp_path / "run")
    shutil.rmtree(start)
    (verdict,) = replay(tmp_path / "run").check()
    assert verdict.difference is None
    before, after = (
        read_adapter(root).adapter.flat
        for root in (whole / "adapter_last", tmp_path / "run" / "adapter")
    )
    assert 0 < (after - before).norm() < before.norm()


def test_a_start_of_another_shape_is_refused(configured, whole, tmp_path):
    other = configured(f"start={whole / 'adapter'}", "adapter.rank=3")
    with pytest.raises(InputError, match=r"rank 2 and scale 2 .* rank 3 and scale 2"):
        train(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_reward_that_raises_or_hangs_fails_its_rows_and_the_run_goes_on(configured, tmp_path):
    unruly = configured("eval.every=0", "keep=last", "steps=1", file="unruly")
    assert train(unruly, tmp_path / "run").finished
    (line,) = RunReader(tmp_path / "run").evidence()
    assert sum(line["failures"].values()) == 2 * (POPULATION + 1)
    (step,) = RunReader(tmp_path / "run").steps()
    assert step["failed"] == 2 * (POPULATION + 1)
    assert all(reward is not None for reward in line["rewards"])


def test_where_all_rewards_tie_nothing_moves_and_the_record_says_so(configured, tmp_path):
    flat = configured("eval.every=0", "keep=last", "steps=1", "objective.function=flat")
    file = Path(flat.config.objective.file)
    file.write_text(VARIED + "def flat(row, completion):\n    return 1.0\n")
    train(flat, tmp_path / "run")
    (step,) = RunReader(tmp_path / "run").steps()
    assert (step["flat"], step["ties"], step["update_norm"]) == (1, 1, 0)
    theta = [state.theta_LP for state in replay(tmp_path / "run").states()]
    assert torch.equal(theta[0], theta[1])
