"""What a run records of itself is what it did, and an interruption changes none of it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

import weft
from weft.core.batch import IGNORE
from weft.core.errors import CheckFailed, NumericError
from weft.core.files import remove_dir
from weft.core.keys import Key
from weft.data.tokenizer import resolve_base
from weft.diagnose.compare.trail import moves
from weft.diagnose.sides.opening import open_evidence
from weft.engines.reward import Reward
from weft.runs.evidence import (
    Check,
    Encoded,
    Notice,
    Pass,
    Snapshot,
    TokenizerSeen,
    TrainStep,
    Weights,
)
from weft.runs.reader import RunReader
from weft.runs.recording import Recording
from weft.runs.sketch import batch_digest, digest, labels_digest, probes
from weft.training import trail
from weft.training.job import load_job
from weft.training.state import State
from weft.training.train import resume, train
from weft.training.watching import PASSES, watching

SHORT = ("steps=5", "eval.every=0", "keep=last", "checkpoint_every=2")


def of(recording, kind):
    return [event for event in recording.events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def root(resolved, tmp_path_factory):
    """A run of five steps."""
    root = tmp_path_factory.mktemp("trail") / "run"
    train(resolved(*SHORT), root)
    return root


@pytest.fixture(scope="module")
def recording(root):
    return Recording(root / "recording")


@pytest.fixture(scope="module")
def job(resolved):
    return load_job(resolved(*SHORT))


def test_what_stands_elsewhere_is_not_said_twice(recording):
    kinds = {type(event) for event in recording.events}
    assert kinds == {TokenizerSeen, Encoded, Weights, Snapshot, Check, Pass, TrainStep}
    assert {each.loss for each in of(recording, TrainStep)} == {None}
    assert recording.about.status == "finished"


def test_passes_hold_the_rows_that_each_step_read(recording, job):
    passes = of(recording, Pass)
    assert [each.index for each in passes] == [0, 1, 2, 3, 4]
    read = job.config.method.batch
    for step, seen in enumerate(passes):
        examples = job.splits["train"].examples
        batch = read(examples, step, 4, Key.of(0))
        ids_BT, labels_BT, mask_BT = (
            recording.array(name) for name in (seen.ids, seen.labels, seen.mask)
        )
        for row, example in enumerate(batch.examples):
            n = example.tokens
            np.testing.assert_array_equal(ids_BT[row, :n], example.ids_T)
            np.testing.assert_array_equal(labels_BT[row, :n], example.labels_T)
            assert (labels_BT[row, n:] == IGNORE).all()
            assert mask_BT[row].sum() == n
            at_BT = recording.array(seen.positions)
            np.testing.assert_array_equal(at_BT[row], np.arange(at_BT.shape[1]))
        assert seen.grad
        assert seen.dropouts == len(job.layout.slots)


def test_positions_are_those_that_the_model_applied(job):
    """Not those that rows have: here something moves them on their way."""
    body = job.base.body
    hook = body.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {"position_ids": kwargs["position_ids"] + 2}),
        with_kwargs=True,
    )
    point = job.point(State.fresh(job.initial_theta))
    scorer = job.scorer(job.grounds(())[0])
    with watching(job.base, 0) as watched:
        scorer.losses(point.theta_LP[:, None], point.batches)
    hook.remove()
    for example in point.batches[0].examples:
        at_n = watched.applied[tuple(example.ids_T[: example.read].tolist())]
        assert at_n.tolist() == list(range(2, 2 + example.read))


def test_nats_of_the_rows_of_a_step_add_up_to_its_loss(recording, root):
    losses = [line["loss"] for line in RunReader(root).steps()]
    for seen, loss in zip(of(recording, Pass), losses, strict=True):
        nats_B = recording.array(seen.row_nll)
        supervised = (recording.array(seen.labels)[:, 1:] != IGNORE).sum()
        assert nats_B.shape == (seen.rows,) and (nats_B > 0).all()
        assert nats_B.sum() / supervised == pytest.approx(loss, rel=1e-6)


def test_nats_of_a_row_are_those_of_a_plain_cross_entropy(job):
    """Of a fresh adapter, which adds nothing: the base alone, row by row."""
    point = job.point(State.fresh(job.initial_theta))
    plain = AutoModelForCausalLM.from_pretrained(resolve_base(job.base.ref), dtype=job.base.dtype)
    with watching(job.base, 0) as watched:
        job.scorer(job.grounds(())[0]).losses(point.theta_LP[:, None], point.batches)
    for example in point.batches[0].examples:
        ids_T, labels_T = torch.tensor(example.ids_T), torch.tensor(example.labels_T)
        with torch.no_grad():
            logits_TV = plain(input_ids=ids_T[None]).logits[0]
        nats = torch.nn.functional.cross_entropy(
            logits_TV[:-1], labels_T[1:], ignore_index=IGNORE, reduction="sum"
        )
        seen = watched.nats[tuple(example.ids_T.tolist())]
        assert seen == pytest.approx(float(nats), rel=1e-5)


def test_the_split_is_another_one_than_that_of_the_run(resolved, monkeypatch):
    """A run that reads two rows at a time is split into single ones."""
    job = load_job(resolved(*SHORT, "micro_batch_size=2"))
    made, sizes = trail._measured, set()

    def measured(job, scorer, point):
        sizes.add(scorer.rows_per_forward)
        return made(job, scorer, point)

    monkeypatch.setattr(trail, "_measured", measured)
    list(trail.checks(job, State.fresh(job.initial_theta)))
    assert sizes == {2, 1}


def test_nobody_looks_at_positions_of_steps_whose_rows_are_not_kept(job):
    point = job.point(State.fresh(job.initial_theta))
    scorer = job.scorer(job.grounds(())[0])
    with watching(job.base, PASSES) as watched:
        scorer.losses(point.theta_LP[:, None], point.batches)
    assert not watched.applied


def test_a_base_that_moves_is_seen_to_do_so(resolved, tmp_path, monkeypatch):
    """One number of one norm, from the first step on; one that stays is seen to stay."""
    from weft.training.fit import Shared

    train(resolved(*SHORT), tmp_path / "still")
    estimate = Shared.estimate

    def moving(self, points):
        with torch.no_grad():
            self.job.base.model.get_parameter("model.norm.weight")[0] += 1e-3
        return estimate(self, points)

    monkeypatch.setattr(Shared, "estimate", moving)
    with pytest.raises(CheckFailed, match="changed during the run"):
        train(resolved(*SHORT), tmp_path / "moving")
    still, moved = (open_evidence(str(tmp_path / name)) for name in ("still", "moving"))
    assert moves(still.steps) == []
    assert moves(moved.steps) == [1, 2, 4]
    first = weft.diff(tmp_path / "still", tmp_path / "moving").causes[0].finding
    assert (first.label, first.rung, first.place, first.step) == (
        "trainable", 11, "base weights", 1,
    )  # fmt: skip


def test_of_a_loss_that_is_no_number_the_first_module_is_told(resolved, tmp_path, monkeypatch):
    from weft.training.fit import Shared

    estimate = Shared.estimate

    def breaking(self, points):
        with torch.no_grad():
            self.job.base.model.get_parameter("model.layers.1.mlp.down_proj.weight")[0] = torch.nan
        return estimate(self, points)

    monkeypatch.setattr(Shared, "estimate", breaking)
    with pytest.raises(NumericError):
        train(resolved(*SHORT), tmp_path / "run")
    (seen,) = of(Recording(tmp_path / "run" / "recording"), Pass)
    assert (seen.index, seen.phase) == (0, "train")
    assert seen.nonfinite.startswith("model.layers.1.") and seen.largest


def test_each_step_has_fingerprints_of_its_rows_and_of_the_adapter_after_it(root, job):
    steps = RunReader(root).steps()
    read = job.config.method.batch
    for step, line in enumerate(steps):
        examples = job.splits["train"].examples
        rows = read(examples, step, 4, Key.of(0)).examples
        ids = [list(map(int, row.ids_T)) for row in reversed(rows)]
        assert line["batch"] == batch_digest(ids), "in any order"
        assert line["labels"] == labels_digest(ids, [row.labels_T for row in reversed(rows)])
    written = load_file(root / "adapter" / "adapter_model.safetensors")
    names = [f"base_model.model.{n}.lora_{f}.weight" for n in job.layout.by_name for f in "AB"]
    flat = np.concatenate([written[name].ravel() for name in names])
    assert steps[-1]["adapter"] == digest(flat)
    assert len({line["adapter"] for line in steps}) == len(steps)


def test_of_a_large_adapter_every_so_manieth_number_is_read(make_batch):
    theta_P = torch.arange(3.0 * trail.READ)
    printed = trail.prints(make_batch(0), theta_P)["adapter"]
    assert printed == digest(theta_P[::3].numpy())


def test_snapshots_are_the_start_and_the_powers_of_two(recording, root, job):
    snapshots = of(recording, Snapshot)
    assert [(s.when, s.step) for s in snapshots] == [
        ("use", 0),
        ("step", 1),
        ("step", 2),
        ("step", 4),
    ]
    start = snapshots[0]
    for name, (a_rI, b_Or) in job.layout.factors(job.initial_theta[0]).items():
        module = start.modules[name]
        np.testing.assert_array_equal(recording.array(module.a), a_rI.numpy())
        np.testing.assert_array_equal(recording.array(module.b), b_Or.numpy())
        assert (module.rank, module.scale, module.dropout) == (2, 8.0, 0.1)
    assert start.trainable["adapter"] == job.layout.size


def test_norms_are_those_of_the_matrices(recording):
    last = of(recording, Snapshot)[-1]
    for module in last.modules.values():
        a, b = (recording.array(name).astype(np.float64) for name in (module.a, module.b))
        assert module.norm_a == pytest.approx(np.linalg.norm(a))
        assert module.norm_update == pytest.approx(np.linalg.norm(module.scale * b @ a))
        assert module.digest_a == digest(recording.array(module.a))


def test_the_base_is_seen_tensor_by_tensor(recording, job):
    (seen,) = of(recording, Weights)
    tensors = job.base.model.state_dict()
    assert set(seen.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert seen.tensors[name].digest == digest(tensor.numpy())
        assert seen.tensors[name].norm == pytest.approx(float(tensor.norm()))
    for name, sketched in seen.sketches.items():
        weight = job.base.model.get_submodule(name).weight.numpy()
        np.testing.assert_allclose(
            recording.array(sketched), weight @ probes(weight.shape[1]), rtol=1e-4, atol=1e-5
        )


def test_texts_know_the_records_that_they_are_made_of(recording, rows_dir):
    rows = (Path(rows_dir) / "train.jsonl").read_text().splitlines()
    found = of(recording, Encoded)
    assert len(found) == 5 * 4
    for each in found:
        for slot in each.slots:
            name, _, line = slot.record.rpartition(":")
            assert name.endswith("train.jsonl")
            row = json.loads(rows[int(line) - 1])
            assert each.text[slot.start : slot.stop] == row[slot.field]
        assert each.slots


def test_norms_of_gradients_stand_beside_the_snapshots(recording, root):
    recorded = {each.step: each.grad_norms for each in of(recording, TrainStep)}
    assert list(recorded) == [1, 2, 4]
    for line in RunReader(root).steps():
        if line["step"] in recorded:
            parts = recorded[line["step"]].values()
            assert np.sqrt(np.sum(np.square(list(parts)))) == pytest.approx(line["grad_norm"])


def test_nulls_are_small_and_not_nothing(recording):
    checks = of(recording, Check)
    assert [each.name for each in checks] == ["repeat"] * 2 + ["ulp"] * 2 + ["split"] * 2
    values = {(each.name, each.words): each.values for each in checks}
    assert all(max(v) == 0 for (name, _), v in values.items() if name == "repeat")
    assert all(0 <= max(v) < 1e-4 for v in values.values())
    moved = [v for (name, _), v in values.items() if name == "ulp"]
    assert all(len(v) == trail.DRAWS for v in moved)
    assert max(max(v) for v in moved) > 0


def test_a_reward_says_that_its_noise_was_not_measured(job):
    rewarded = dataclasses.replace(job, objective=Reward.__new__(Reward))
    (said,) = trail.checks(rewarded, None)
    assert isinstance(said, Notice)


@pytest.mark.parametrize("stopped", [1, 3])
def test_an_interrupted_run_leaves_what_an_unbroken_one_does(root, resolved, tmp_path, stopped):
    def kill(progress):
        if progress.step == stopped:
            raise KeyboardInterrupt  # as a kill is: no checkpoint is written

    with pytest.raises(KeyboardInterrupt):
        train(resolved(*SHORT), tmp_path / "run", watch=kill)
    resume(tmp_path / "run")
    same(Recording(root / "recording"), Recording(tmp_path / "run" / "recording"))


def test_a_run_that_was_asked_to_stop_goes_on_without_a_gap(root, resolved, tmp_path):
    def ask(progress):
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    train(resolved(*SHORT), tmp_path / "run", watch=ask)
    assert Recording(tmp_path / "run" / "recording").about.status == "interrupted"
    resume(tmp_path / "run")
    same(Recording(root / "recording"), Recording(tmp_path / "run" / "recording"))


def test_a_run_that_recorded_nothing_before_says_from_where_it_does(root, resolved, tmp_path):
    def ask(progress):
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    train(resolved(*SHORT), tmp_path / "run", watch=ask)
    remove_dir(tmp_path / "run" / "recording")
    resume(tmp_path / "run")
    first, *rest = Recording(tmp_path / "run" / "recording").events
    assert first == Notice(text="nothing was recorded before step 4")
    assert [type(each) for each in rest] == [Pass, TrainStep, Snapshot, Pass]


def same(one, other):
    assert one.events == other.events
    for event in one.events:
        if isinstance(event, Pass):
            np.testing.assert_array_equal(one.array(event.ids), other.array(event.ids))
        for module in event.modules.values() if isinstance(event, Snapshot) else ():
            np.testing.assert_array_equal(one.array(module.b), other.array(module.b))


def test_members_of_a_run_have_events_of_their_own(resolved, tmp_path):
    train(resolved(*SHORT, "adapter.dropout=0", "seeds=[0,1]"), tmp_path / "run")
    recording = Recording(tmp_path / "run" / "recording")
    for kind in (Snapshot, Pass, TrainStep, Check):
        assert {each.model for each in of(recording, kind)} == {"seed-0", "seed-1"}, kind
    assert [each.model for each in of(recording, Weights)] == ["model-0"]
    lines = RunReader(tmp_path / "run").steps()
    assert lines[0]["batch"] != lines[1]["batch"]


@pytest.mark.parametrize("merge", ["stack", "weights"])
def test_a_boosted_run_records_the_whole_chain(rank_one, tmp_path, merge):
    quiet = ("eval.every=0", "keep=last", "steps=4", "method.eps=1e-2")
    boost = ("boost.steps_per_iteration=3", f"boost.merge={merge}")
    train(rank_one("mezo", *quiet, *boost), tmp_path / "run")
    snapshots = of(Recording(tmp_path / "run" / "recording"), Snapshot)
    ranks = [{module.rank for module in each.modules.values()} for each in snapshots]
    assert [each.step for each in snapshots] == [0, 1, 2, 4]
    assert ranks == [{1}, {1}, {1}, {2}]
    for module in (m for each in snapshots for m in each.modules.values()):
        assert module.seen_scale == pytest.approx(16, rel=1e-5)
