"""A run is made again from its records alone: without data, without weights, to the last bit."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

import weft.training.replay
from weft.core.errors import CheckFailed, InputError
from weft.runs.reader import RunReader
from weft.training.replay import replay
from weft.training.state import State
from weft.training.train import Entry, resume, train, train_together

MEZO = ["method.name=mezo", "adapter.dropout=0", "adapter.rank=1", "optimiser.name=sgd"]
MEZO = [*MEZO, "optimiser.lr=3e-2"]

RUNS = {
    "plain": [],
    "rank-3": ["adapter.rank=3"],
    "one-sided": ["method.sides=one", "method.directions=3"],
    "many-directions": ["method.directions=33", "method.noise=rademacher", "steps=4"],
    "b-only": ["adapter.factors=b", "optimiser.weight_decay=0.1"],
    "lanes": ["seeds=[0,1]", "optimiser.lr=[1e-2,3e-2]", "boost.steps_per_iteration=5"],
    "adamw": ["optimiser.name=adamw", "optimiser.schedule=cosine", "optimiser.warmup_ratio=0.2"],
    "clipped": ["optimiser.clip=0.5", "optimiser.momentum=0.9"],
    "boosted": ["boost.steps_per_iteration=3", "boost.shrinkage=0.5"],
    "boosted-in-the-weights": ["boost.steps_per_iteration=3", "boost.merge=weights"],
    "boosted-by-epochs": ["boost.merge_frequency=1", "steps=25"],
    "boosted-on-some-layers": [
        *["boost.steps_per_iteration=2", "boost.layers_per_round=1", "boost.optimiser=keep"],
        *["optimiser.momentum=0.9", "boost.warmup_steps=2"],
    ],
    "boosted-on-a-plateau": [
        *["boost.plateau={patience: 1, min_delta: 1e-4}", "eval.every=2", "steps=24"],
        *["seeds=[0,1,2]"],
    ],
    "last": ["keep=last", "boost.steps_per_iteration=4"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """A function that says where a run is to be, and never the same twice."""
    return lambda: tmp_path_factory.mktemp("replayed") / "run"


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_the_adapters_of_a_run_are_replayed_bit_for_bit(settings, resolved, finished):
    root = finished()
    train(resolved(*MEZO, *settings), root)
    verdicts = replay(root).check()
    lanes = max(1, len(RunReader(root).member_names()))
    kinds = {"adapter"} if "keep=last" in settings else {"adapter", "adapter_last"}
    assert len(verdicts) == lanes * len(kinds)
    assert {verdict.which for verdict in verdicts} == kinds
    assert [verdict.difference for verdict in verdicts] == [None] * len(verdicts)


def test_a_plateau_that_learnt_nothing_and_one_that_did_are_both_replayed(resolved, finished):
    """What the case above is about is really in it."""
    root = finished()
    train(resolved(*MEZO, *RUNS["boosted-on-a-plateau"]), root)
    ends = [event for event in RunReader(root).manifest.events if "of_step" in event]
    assert {event["kind"] for event in ends} == {"commit", "restart"}
    assert any(event["of_step"] < event["step"] for event in ends if event["kind"] == "commit")
    assert all(verdict.difference is None for verdict in replay(root).check())


def test_every_step_is_replayed_with_its_optimiser_and_its_stack(resolved, finished):
    root = finished()
    train(resolved(*MEZO, "boost.steps_per_iteration=5", "optimiser.momentum=0.9"), root)
    states = list(replay(root).states())
    assert [state.step for state in states] == list(range(13))
    for step in (9, 12):  # the checkpoints that are left
        saved = State.load(root / "checkpoints" / f"step-{step}", torch.device("cpu"))
        assert torch.equal(saved.theta_LP, states[step].theta_LP)
        assert torch.equal(saved.moments.first_LP, states[step].moments.first_LP)
        assert torch.equal(saved.stacks[0], states[step].stacks[0])


def test_a_run_that_was_interrupted_and_resumed_is_replayed_as_one(resolved, finished):
    def stop(progress):
        if progress.step == 7:
            signal.raise_signal(signal.SIGINT)

    root = finished()
    given = resolved(*MEZO, "boost.steps_per_iteration=5", "keep=last", "checkpoint_every=50")
    assert not train(given, root, watch=stop).finished
    states = list(replay(root).states())
    assert [len(state.stacks[0]) for state in states] == [0] * 5 + [1] * 3
    saved = State.load(root / "checkpoints" / "step-7", torch.device("cpu"))
    assert torch.equal(saved.theta_LP, states[7].theta_LP)
    assert resume(root).finished
    assert [verdict.difference for verdict in replay(root).check()] == [None]


def test_runs_that_shared_their_forwards_are_replayed_one_by_one(resolved, finished):
    settings = [*MEZO, "seeds=[0,1]", "method.directions=5"]
    arms = [settings, [*settings, "boost.steps_per_iteration=4"]]
    entries = [Entry(resolved(*arm), finished()) for arm in arms]
    train_together(entries)
    for entry in entries:
        verdicts = replay(entry.root).check()
        assert len(verdicts) == 4 and all(verdict.difference is None for verdict in verdicts)


def test_neither_data_nor_weights_are_read(resolved, finished, small_base, rows_dir, tmp_path):
    base = shutil.copytree(small_base, tmp_path / "base")
    data = shutil.copytree(rows_dir, tmp_path / "data")
    paths = [f"base={base}", f"data.path={data}/train.jsonl", f"data.valid_path={data}/valid.jsonl"]
    root = finished()
    train(resolved(*MEZO, *paths), root)
    (base / "model.safetensors").unlink()
    shutil.rmtree(data)
    assert all(verdict.difference is None for verdict in replay(root).check())


@pytest.fixture(scope="module")
def boosted(finished, tmp_path_factory, request) -> Path:
    """A finished run; tests that change its records use a copy."""
    from weft.training.resolve import resolve

    root, rows = finished(), request.getfixturevalue("rows_dir")
    settings = [
        *[f"base={request.getfixturevalue('small_base')}", f"data.path={rows}/train.jsonl"],
        *[f"data.valid_path={rows}/valid.jsonl", "data.max_length=128", "batch_size=4"],
        *[*MEZO, "steps=6", "eval.every=3", "boost.steps_per_iteration=2"],
    ]
    train(resolve("instruct", settings), root)
    return root


@pytest.fixture
def copy(boosted, tmp_path) -> Path:
    return shutil.copytree(boosted, tmp_path / "copy")


def change_line(root: Path, number: int, **fields) -> None:
    path = root / "evidence.jsonl"
    lines = path.read_text().splitlines()
    lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | fields)
    path.write_text("\n".join(lines) + "\n")


def test_an_adapter_that_was_not_made_by_its_evidence_is_told_where(copy):
    change_line(copy, 5, slopes=[0.25])
    kept, last = replay(copy).check()
    assert "sites, by up to " in last.difference
    assert (kept.difference is None) == (kept.step < 5)


def test_a_missing_line_is_named(copy):
    path = copy / "evidence.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[4:]))
    with pytest.raises(InputError, match=r"evidence\.jsonl has no line for step 4 of adapter"):
        replay(copy)


def test_a_torn_line_is_named(copy):
    path = copy / "evidence.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-9])
    with pytest.raises(InputError, match=r"no line for step 6 of adapter, of 6 steps"):
        replay(copy)
    lines = whole.splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[2][:20] + "\n", *lines[3:]]))
    with pytest.raises(InputError, match=r"evidence\.jsonl, line 3: not valid JSON"):
        replay(copy)


@pytest.mark.parametrize("slopes", [[], [1.0, 2.0], ["x"], None, [float("nan")], [True]])
def test_slopes_that_are_none_are_named(copy, slopes):
    change_line(copy, 2, slopes=slopes)
    with pytest.raises(InputError, match=r"line 2: step 2 of adapter must have 1 slopes"):
        replay(copy)


def test_evidence_of_another_seed_is_refused(copy):
    change_line(copy, 2, key=1)
    with pytest.raises(InputError, match=r"line 2: step 2 of adapter has key 1, and the config"):
        replay(copy)


@pytest.mark.parametrize("fields", [{"step": 1}, {"step": 0}, {"member": "other"}, {"step": "2"}])
def test_a_line_of_no_step_is_refused(copy, fields):
    change_line(copy, 2, **fields)
    with pytest.raises(InputError, match=r"line 2: (a second line|no step of this run)"):
        replay(copy)


def change_manifest(root: Path, change) -> None:
    path = root / "manifest.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def test_a_commit_that_is_missing_is_named(copy):
    def forget(fields):
        fields["events"] = [e for e in fields["events"] if e.get("step") != 4]

    change_manifest(copy, forget)
    with pytest.raises(InputError, match=r"has 0 commits at step 4, where .* asks for 1"):
        replay(copy)


@pytest.mark.parametrize("fields", [{"of_step": 5}, {"of_step": None}, {"member": "other"}])
def test_a_commit_that_cannot_be_is_named(copy, fields):
    def spoil(manifest):
        next(e for e in manifest["events"] if e.get("step") == 4).update(fields)

    change_manifest(copy, spoil)
    with pytest.raises(InputError, match="which this run cannot have"):
        replay(copy)


def test_another_count_of_commits_does_not_fit(copy):
    def spoil(manifest):
        next(e for e in manifest["events"] if e.get("step") == 4)["commits"] = 7

    change_manifest(copy, spoil)
    with pytest.raises(CheckFailed, match=r"at step 4 it has .*7"):
        replay(copy).check()


def test_a_first_adapter_that_the_seed_does_not_draw(copy):
    def spoil(manifest):
        manifest["fingerprints"]["initial_adapter"] = "0" * 64

    change_manifest(copy, spoil)
    with pytest.raises(CheckFailed, match="began with another adapter than this one"):
        replay(copy).check()


def test_backpropagation_leaves_nothing_to_replay(resolved, finished):
    root = finished()
    train(resolved("steps=2", "eval.every=1"), root)
    with pytest.raises(InputError, match="`backprop` leaves no evidence"):
        replay(root)


def test_an_unfinished_run_is_replayed_as_far_as_it_came(copy):
    (copy / "DONE.json").unlink()
    path = copy / "evidence.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    found = replay(copy)
    assert [len(state.stacks[0]) for state in found.states()] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(InputError, match="has no adapter yet"):
        found.check()


def test_a_run_on_a_device_that_is_not_here_is_not_replayed_elsewhere(copy, monkeypatch):
    monkeypatch.setattr(weft.training.replay.torch.cuda, "is_available", lambda: False)
    change_manifest(copy, lambda fields: fields["config"].update(device="cuda"))
    with pytest.raises(InputError, match="made on cuda, which this machine has not"):
        replay(copy).check()
