"""An experiment trains its arms as runs, on the same rows, and loses nothing when it is stopped."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import weft
from weft.analysis.experiment import read_experiment
from weft.core.errors import InputError, NumericError
from weft.runs.experiment import ExperimentReader
from weft.runs.layout import ExperimentLayout
from weft.runs.reader import RunReader
from weft.runs.writer import take_lock
from weft.training import ending
from weft.training.experiment import Watchers, blocks, plan, resume, start
from weft.training.experiment_config import read_design
from weft.training.job import load_job
from weft.training.state import State

ARMS = {
    "mezo": {},
    "boosted every 2": {"boost.steps_per_iteration": 2},
    "backprop": {"method": {"name": "backprop"}, "optimiser": {"name": "adamw", "lr": 1e-3}},
}


@pytest.fixture(scope="module")
def source(small_base, rows_dir, tmp_path_factory) -> str:
    """An experiment of a few seconds."""
    path = tmp_path_factory.mktemp("source") / "short.yaml"
    run = {
        "base": small_base,
        "data": {
            "path": f"{rows_dir}/train.jsonl",
            "valid_path": f"{rows_dir}/valid.jsonl",
            "max_length": 128,
        },
        "adapter": {"rank": 1, "alpha": 16, "targets": ["q_proj", "v_proj"]},
        "method": {"name": "mezo"},
        "optimiser": {"lr": 1e-3},
        "batch_size": 2,
        "eval": {"every": 2},
        "checkpoint_every": 1,
    }
    experiment = {"run": run, "seeds": [3, 4], "budget": {"forwards": 9}, "arms": ARMS}
    path.write_text(yaml.safe_dump(experiment, sort_keys=False))
    return str(path)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> Path:
    """The experiment, left alone."""
    root = tmp_path_factory.mktemp("whole") / "experiment"
    return start(plan(read_design(source)), root)


def adapters(root: Path) -> dict[str, bytes]:
    """Every adapter of an experiment, by its path."""
    found = (root / "arms").rglob("adapter_model.safetensors")
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def scores(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in ExperimentLayout(root).scores.iterdir()}


def curves(root: Path) -> list[tuple]:
    found = read_experiment(root)
    return [
        (arm.name, run.seed, run.points, run.commits) for arm in found.arms for run in arm.seeds
    ]


def same(root: Path, whole: Path) -> bool:
    """Whether two experiments came to the same, to the last bit."""
    made = (adapters(root), scores(root), curves(root))
    return made == (adapters(whole), scores(whole), curves(whole))


def test_a_budget_of_forwards_is_the_same_for_every_arm(source):
    record = plan(read_design(source, ["arms.mezo.method.directions=2"])).record
    assert {name: arm.steps for name, arm in record.arms.items()} == {
        "mezo": 2,
        "boosted every 2": 4,
        "backprop": 4,
    }
    assert [arm.unused_forwards for arm in record.arms.values()] == [1, 1, 1]
    assert "1 of the budget's forwards are not used: a step takes 4" in record.arms["mezo"].notices


def test_a_budget_below_one_step_is_refused(source):
    with pytest.raises(InputError, match=r"is 3, and one step of mezo takes 4"):
        plan(read_design(source, ["arms.mezo.method.directions=2", "budget.forwards=3"]))


def test_the_plan_says_what_each_arm_really_uses(source):
    shown = blocks(plan(read_design(source)))
    assert "rank 1, alpha 16, scale 16" in shown["mezo"]["adapter"]
    assert "boosting" not in shown["mezo"]
    assert "every 2 steps" in shown["boosted every 2"]["boosting"]
    assert "eps 0.001, 2 forwards a step" in shown["mezo"]["method"]
    assert all("4 steps of 2 rows" in block["length"] for block in shown.values())


def test_arms_that_can_share_a_forward_do(source):
    groups = plan(read_design(source)).record.groups
    assert groups == (("mezo", "boosted every 2"), ("backprop",))


def test_a_seed_sees_the_same_rows_in_the_same_order_in_every_arm(source):
    planned = plan(read_design(source))
    jobs = [load_job(resolved) for resolved in planned.arms.values()]

    def seen(job, step):
        state = replace(State.fresh(job.initial_theta), step=step)
        return [batch.ids for batch in job.point(state).batches]

    order = [[seen(job, step) for step in range(4)] for job in jobs]
    assert order[0] == order[1] == order[2]
    assert order[0][0][0] != order[0][0][1]  # the seeds differ


def test_every_arm_is_a_run_and_every_seed_an_adapter(whole):
    for slug, method in (("mezo", "mezo"), ("boosted-every-2", "mezo"), ("backprop", "backprop")):
        run = RunReader(whole / "arms" / slug)
        assert run.done and run.manifest.config["method"]["name"] == method
        assert run.member_names() == ["seed-3", "seed-4"]
        assert max(record["forwards"] for record in run.steps()) == 8


def test_the_scores_are_those_of_eval(whole):
    found = read_experiment(whole)
    assert (found.split, found.rows, found.metric) == ("valid", 12, "token_accuracy")
    for arm in found.arms:
        records = weft.evaluate(whole / "arms" / arm.record.slug)
        for run in arm.seeds:
            wanted = records[f"seed-{run.seed}"]
            assert run.score.loss == pytest.approx(wanted["eval_loss"], rel=1e-6)
            assert run.score.metric == wanted["token_accuracy"]
    base = weft.evaluate(
        "base",
        base=RunReader(whole / "arms/mezo").manifest.config["base"],
        data=RunReader(whole / "arms/mezo").manifest.config["data"]["valid_path"],
    )
    assert found.base.loss == pytest.approx(base["base"]["eval_loss"], rel=1e-6)


def test_more_seeds_than_ten_are_not_mistaken_for_each_other(source, tmp_path):
    """The adapters of a run are listed by name, in which seed-10 comes before seed-9."""
    settings = ["seeds=[9,10]", "budget.forwards=2", "arms={backprop: {method.name: backprop}}"]
    root = start(plan(read_design(source, [*settings, "run.keep=last"])), tmp_path / "ten")
    (arm,) = read_experiment(root).arms
    records = weft.evaluate(root / "arms/backprop")
    for run in arm.seeds:
        assert run.score.loss == pytest.approx(records[f"seed-{run.seed}"]["eval_loss"], rel=1e-6)
    assert arm.seeds[0].score.loss != arm.seeds[1].score.loss


def test_boosting_is_what_it_boosts_up_to_the_first_commit(whole):
    mezo, boosted, _ = read_experiment(whole).arms
    for a, b in zip(mezo.seeds, boosted.seeds, strict=True):
        assert (a.commits, b.commits) == ((), (2, 4))
        assert [p.perturbed for p in a.points[:3]] == [p.perturbed for p in b.points[:3]]
        assert a.points[3].perturbed != b.points[3].perturbed


@pytest.mark.parametrize("step", [1, 3])
def test_after_ctrl_c_it_goes_on_to_the_same_end(source, whole, tmp_path, step):
    root = tmp_path / "stopped"

    def watch(progress):
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    planned = plan(read_design(source))
    start(planned, root, Watchers(step=watch))
    assert ExperimentReader(root).record.status == "interrupted"
    assert not ExperimentLayout(root).scores.exists()
    resume(root, planned)
    assert ExperimentReader(root).record.status == "finished"
    assert same(root, whole)


def test_a_process_that_ends_at_any_moment_leaves_a_state_to_go_on_from(source, whole, tmp_path):
    root, planned = tmp_path / "ended", plan(read_design(source))

    def fail(*facts):
        raise SystemExit

    moments = [Watchers(group=fail), Watchers(announce=fail), Watchers(step=fail)]
    with pytest.raises(SystemExit):
        start(planned, root, moments[0])
    for watchers in (*moments[1:], Watchers(scoring=fail)):
        with pytest.raises(SystemExit):
            resume(root, watchers=watchers)
        assert ExperimentReader(root).record.status == "failed"
    resume(root)
    assert same(root, whole)


def test_what_is_over_is_not_done_again(whole):
    before = {path: path.stat().st_mtime_ns for path in (whole / "arms").rglob("*")}

    def fail(*facts):
        raise AssertionError(facts)

    resume(whole, watchers=Watchers(group=fail, scoring=fail))
    assert {path: path.stat().st_mtime_ns for path in (whole / "arms").rglob("*")} == before


def test_an_arm_that_diverges_does_not_end_the_experiment(source, tmp_path):
    said = []
    planned = plan(read_design(source, ["arms.boosted every 2.optimiser.lr=1e30"]))
    root = start(planned, tmp_path / "wild", Watchers(notice=said.append))
    mezo, wild, backprop = read_experiment(root).arms
    assert [arm.status for arm in (mezo, wild, backprop)] == ["finished", "diverged", "finished"]
    assert len(said) == 1 and "boosted every 2 diverged" in said[0]
    assert wild.trouble and wild.metric is None and wild.step < 4
    assert mezo.step == backprop.step == 4
    resume(root, watchers=Watchers(group=lambda *facts: said.append(facts)))
    assert len(said) == 1  # it is not tried again


def test_an_arm_whose_kept_adapter_scores_no_number_does_not_end_it(source, tmp_path, monkeypatch):
    """Without evaluations while training it is seen only now."""

    def validate(job, *arguments, **options):
        if job.config.optimiser.lr == 0.5:
            raise NumericError("seed-3 has loss nan")
        return really(job, *arguments, **options)

    really = ending.validate
    monkeypatch.setattr(ending, "validate", validate)
    settings = ["run.eval.every=0", "run.keep=last", "seeds=[3]", "budget.forwards=2"]
    arms = "arms={wild: {optimiser.lr: 0.5}, mezo: {}}"
    root = start(plan(read_design(source, [*settings, arms])), tmp_path / "wild")
    wild, mezo = read_experiment(root).arms
    assert (wild.status, wild.trouble) == ("diverged", "seed-3 has loss nan")
    assert mezo.status == "finished" and mezo.scores


@pytest.mark.parametrize(
    "boost", ["{steps_per_iteration: 2, merge: weights}", "{plateau: {patience: 1}}"]
)
def test_every_kind_of_boosting_is_scored(source, tmp_path, boost):
    settings = [f"arms.boosted every 2.boost={boost}", "seeds=[3]"]
    root = start(plan(read_design(source, settings)), tmp_path / "boosted")
    boosted = read_experiment(root).arms[1]
    (run,) = boosted.seeds
    records = weft.evaluate(root / "arms" / boosted.record.slug)
    (record,) = records.values()
    assert run.score.loss == pytest.approx(record["eval_loss"], rel=1e-6)


def test_another_configuration_is_refused(source, whole):
    other = plan(read_design(source, ["run.batch_size=3", "arms.mezo.optimiser.lr=0.5"]))
    with pytest.raises(InputError) as caught:
        resume(whole, other)
    assert "arms.mezo.batch_size: 2 became 3" in caught.value.problem
    assert "arms.mezo.optimiser.lr: 0.001 became 0.5" in caught.value.problem


def test_a_stored_file_that_was_changed_is_refused(source, tmp_path):
    root = tmp_path / "changed"
    with pytest.raises(SystemExit):
        start(plan(read_design(source)), root, Watchers(group=exit_now))
    config = ExperimentLayout(root).config
    text = config.read_text()
    config.write_text(text.replace("batch_size: 2", "batch_size: 4"))
    with pytest.raises(InputError, match="is not as it was when the experiment started"):
        resume(root)
    config.unlink()
    with pytest.raises(SystemExit):
        resume(root, watchers=Watchers(group=exit_now))
    assert config.read_text() == text


def test_two_processes_do_not_write_one_experiment(whole):
    lock = take_lock(ExperimentLayout(whole))
    try:
        with pytest.raises(InputError, match=r"another process .* is writing the experiment"):
            resume(whole)
    finally:
        lock.release()


def exit_now(*facts: object) -> None:
    raise SystemExit


def test_a_directory_in_use_is_refused(source, whole, tmp_path):
    planned = plan(read_design(source))
    with pytest.raises(InputError, match="holds an experiment") as caught:
        start(planned, whole)
    assert "--resume" in caught.value.hint
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        start(planned, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
