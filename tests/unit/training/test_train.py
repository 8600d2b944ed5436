"""A run from start to end: what it leaves, what it keeps, how it stops and how it goes on."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from weft.core.errors import InputError, NumericError
from weft.engines.scorer import LocalScorer
from weft.formats.peft import read_adapter
from weft.methods.estimate import Gradient
from weft.runs.reader import RunReader
from weft.training.refs import open_subject
from weft.training.train import resume, train

ADAPTER = "adapter/adapter_model.safetensors"


def steps_without_time(root: Path) -> list[dict]:
    return [{k: v for k, v in s.items() if k != "seconds"} for s in RunReader(root).steps()]


def test_a_run_leaves_its_whole_record(resolved, tmp_path):
    outcome = train(resolved(), tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    manifest = reader.manifest
    assert outcome.finished
    assert reader.done
    assert manifest.status == "finished"
    assert [s["step"] for s in reader.steps()] == list(range(1, 13))
    ends = ["", *(f"-step-{step}" for step in (0, 12, 4, 8))]
    names = ("token_accuracy", "valid")
    assert reader.table_names() == [name + end for name in names for end in ends]
    assert set(manifest.fingerprints) >= {"config", "code", "base", "tokens.train", "outcome"}
    assert manifest.data["train"]["kept"] == 40
    assert manifest.config["adapter"]["rank"] == 2
    assert manifest.origins["steps"] == "command line"
    assert manifest.origins["optimiser.schedule"] == "file instruct.yaml"
    assert all(site == {"rank": 2, "scale": 8} for site in manifest.sites.values())
    assert manifest.events[-1]["unchanged"] is True
    result = reader.results("eval")
    assert result["eval_loss"] == pytest.approx(reader.table("valid").means()[0])
    assert result["perplexity"] == pytest.approx(np.exp(result["eval_loss"]))
    assert result["supervised_tokens"] == manifest.data["valid"]["supervised_tokens"]
    assert result["eval_loss"] < outcome.before["adapter"]["loss"]


def test_the_best_adapter_is_kept_and_the_last_one_beside_it(resolved, tmp_path):
    """The validation rows are answered in other words, so training only makes them less likely."""
    strange = tmp_path / "strange.jsonl"
    strange.write_text(json.dumps({"instruction": "the cat", "input": "", "output": "XQZ" * 9}))
    outcome = train(resolved(f"data.valid_path={strange}"), tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    by_step = {
        int(name.rsplit("-", 1)[1]): reader.table(name).means()[0]
        for name in reader.table_names()
        if name.startswith("valid-step-")
    }
    best = min(by_step, key=by_step.__getitem__)
    assert outcome.results["adapter"]["step"] == best < 12
    assert outcome.results["adapter"]["eval_loss"] == pytest.approx(by_step[best])
    assert (tmp_path / "run" / "adapter_last").is_dir()


def test_keep_last_without_evaluation(resolved, tmp_path):
    outcome = train(resolved("keep=last", "eval.every=0"), tmp_path / "run")
    assert outcome.before == {}
    assert outcome.results["adapter"]["step"] == 12
    assert not (tmp_path / "run" / "adapter_last").exists()


@pytest.mark.parametrize("settings", ["seeds=[0,1,2]", "optimiser.lr=[1e-3,1e-2]"])
def test_adapters_that_train_together_are_those_that_train_alone(settings, resolved, tmp_path):
    train(resolved(settings), tmp_path / "together")
    members = RunReader(tmp_path / "together").member_names()
    assert len(members) == settings.count(",") + 1
    key = settings.split("=")[0].removesuffix("s")
    for name in members:
        value = name.split("-", 1)[1]
        train(resolved(f"{key}={value}"), tmp_path / name)
        alone = load_file(tmp_path / name / ADAPTER)
        shared = load_file(tmp_path / "together" / "members" / name / ADAPTER)
        for tensor in alone:
            torch.testing.assert_close(shared[tensor], alone[tensor], rtol=1e-4, atol=1e-6)


def test_a_stopped_run_goes_on_bit_for_bit(resolved, tmp_path):
    train(resolved(), tmp_path / "whole")

    def stop_at_seven(progress):
        if progress.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    outcome = train(resolved(), tmp_path / "parts", watch=stop_at_seven)
    assert (outcome.finished, outcome.step) == (False, 7)
    assert RunReader(tmp_path / "parts").manifest.status == "interrupted"
    assert (tmp_path / "parts" / "checkpoints" / f"step-{outcome.step}").is_dir()
    assert resume(tmp_path / "parts").finished
    for name in (ADAPTER, "adapter_last/adapter_model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert steps_without_time(tmp_path / "whole") == steps_without_time(tmp_path / "parts")
    whole, parts = (RunReader(tmp_path / name).manifest for name in ("whole", "parts"))
    assert whole.fingerprints == parts.fingerprints


def test_a_run_is_not_resumed_on_other_data(resolved, rows_dir, tmp_path):
    mine = tmp_path / "rows"
    mine.mkdir()
    for name in ("train.jsonl", "valid.jsonl"):
        (mine / name).write_text((Path(rows_dir) / name).read_text())

    def stop(progress):
        os.kill(os.getpid(), signal.SIGINT)

    train(resolved(f"data.path={mine}/train.jsonl"), tmp_path / "run", watch=stop)
    rows = (mine / "train.jsonl").read_text().splitlines()
    (mine / "train.jsonl").write_text("\n".join(rows[::-1]))
    with pytest.raises(InputError, match=r"tokens\.train differ"):
        resume(tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_the_run(resolved, tmp_path, monkeypatch):
    """The message names step and examples; the state before the step is the newest checkpoint."""
    honest = LocalScorer.gradient

    def fails_at_sixth(self, theta_LP, batches, keys):
        found = honest(self, theta_LP, batches, keys)
        if not begun:  # the noise of the first loss is measured before
            return found
        calls.append(batches)
        return found if len(calls) < 6 else Gradient(found.gradient_LP, (float("nan"),))

    calls: list = []
    begun: list = []
    monkeypatch.setattr(LocalScorer, "gradient", fails_at_sixth)
    with pytest.raises(NumericError, match="step 6: loss nan") as error:
        train(resolved(), tmp_path / "run", announce=begun.append)
    assert all(id in error.value.problem for id in calls[5][0].ids)
    manifest = RunReader(tmp_path / "run").manifest
    assert manifest.status == "failed"
    assert manifest.events[0]["step"] == 6
    assert (tmp_path / "run" / "checkpoints" / "step-5").is_dir()
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_directory_with_a_run_is_not_written(resolved, tmp_path):
    train(resolved("steps=1"), tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    with pytest.raises(InputError, match="holds a run") as error:
        train(resolved("steps=1"), tmp_path / "run")
    assert "--resume" in error.value.hint
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}


def test_the_adapter_file_is_the_best_theta(resolved, tmp_path, small_base):
    """Reading the written adapter gives the loss that the run reported."""
    outcome = train(resolved(), tmp_path / "run")
    subject = open_subject([str(tmp_path / "run")])
    from weft.training.evaluate import evaluate
    from weft.training.refs import data_for, load_split

    split = load_split(subject, data_for(subject.places), "valid")
    found = evaluate(subject.engine, subject.bank, split, batch_size=3)
    assert found.table.means()[0] == pytest.approx(
        outcome.results["adapter"]["eval_loss"], rel=1e-6
    )
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == small_base
    assert read_adapter(tmp_path / "run" / "adapter").adapter.layout.size > 0


def test_an_update_that_overflows_stops_before_it_is_kept(resolved, tmp_path):
    with pytest.raises(NumericError, match=r"step 1: .* would not be finite"):
        train(resolved("optimiser.lr=1e39", "optimiser.warmup_ratio=0"), tmp_path / "run")
    state = load_file(tmp_path / "run" / "checkpoints" / "step-0" / "state.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_an_evaluation_that_is_not_finite_says_when_and_its_step_is_taken_again(resolved, tmp_path):
    """The update is still a number, and the logits are not."""
    problem = "evaluation after step 1: adapter has loss nan"
    with pytest.raises(NumericError, match=problem):
        train(
            resolved(
                "adapter.scale=1e15",
                "optimiser.lr=1e17",
                "optimiser.warmup_ratio=0",
                "eval.every=1",
            ),
            tmp_path / "run",
        )
    reader = RunReader(tmp_path / "run")
    assert [entry.name for entry in reader.layout.checkpoints.iterdir()] == ["step-0"]
    assert not reader.steps()
    assert reader.manifest.events[0]["kind"] == "not finite"
    with pytest.raises(NumericError, match=problem):
        resume(tmp_path / "run")


def test_the_last_evaluation_is_of_all_rows(resolved, tmp_path):
    outcome = train(resolved("eval.rows=2", "steps=2"), tmp_path / "run")
    assert outcome.results["adapter"]["num_examples"] == 12
    assert len(RunReader(tmp_path / "run").table("valid-step-2").ids) == 2


def test_resuming_elsewhere_is_noticed(resolved, tmp_path):
    def stop(progress):
        os.kill(os.getpid(), signal.SIGINT)

    train(resolved(), tmp_path / "run", watch=stop)
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["torch"] = "0.1"
    path.write_text(json.dumps(manifest))
    resume(tmp_path / "run")
    notices = RunReader(tmp_path / "run").manifest.notices
    assert any("another version of torch" in notice for notice in notices)
