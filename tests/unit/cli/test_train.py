"""`weft train`: what it shows, what it leaves, how it stops and goes on."""

from __future__ import annotations

import shutil
import signal

import pytest

from weft.cli.progress import TrainingProgress
from weft.cli.train import _news
from weft.runs.reader import RunReader


def test_a_run_is_announced_and_ends_with_its_numbers(cli, settings, tmp_path):
    said = cli("train", "instruct", *settings, "--run-dir", "mine")
    assert said.code == 0
    block, _, rest = said.err.partition("\n\n")
    assert block.startswith("base ")
    assert "adapter     rank 2, alpha 4, scale 2, dropout 0.1\n" in block
    assert "note: data.path=" in rest and "clears data.task of instruct.yaml\n" in rest
    assert "step 1/6  loss " in rest and "step 6/6  loss " in rest
    assert said.err.endswith("next: weft compare base mine\n")

    table, times, places = said.out.split("\n\n")
    header, before, kept = table.splitlines()
    assert header.split() == ["held-out", "loss", "perplexity", "token", "accuracy"]
    assert before.startswith("before  ") and kept.startswith(("best (step 3)", "best (step 6)"))
    header, *phases, total = (line.split() for line in times.splitlines())
    assert header == ["phase", "kind", "seconds", "share", "times"]
    seconds = [float(line[-4] if line[-1].isdigit() else line[-3]) for line in phases]
    assert sum(seconds) == pytest.approx(float(total[1]), abs=1e-9)
    assert total[2:] == ["100.0", "%"]
    assert places == "run      mine\nadapter  mine/adapter\n"
    assert (tmp_path / "mine" / "figures" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert RunReader(tmp_path / "mine").done


def test_several_adapters_are_told_apart(cli, settings):
    said = cli("train", "instruct", *settings, "seeds=[0,1]", "--run-dir", "two")
    assert said.code == 0
    labels = [line.split("  ")[0] for line in said.out.splitlines()[1:5]]
    assert [label.split(",")[0] for label in labels] == ["seed-0", "seed-0", "seed-1", "seed-1"]
    assert "adapter seed-1  two/members/seed-1/adapter\n" in said.out


def test_a_run_starts_from_an_adapter_that_is_named_once(cli, settings, run):
    said = cli("train", "instruct", *settings, "--from", run, "--run-dir", "more")
    assert said.code == 0, said.err
    assert "before  " in said.out
    twice = cli("train", "instruct", *settings, f"start={run}", "--from", run)
    assert twice.code == 2
    assert "both say where to start" in twice.err
    gone = cli("train", "instruct", *settings, "--from", "weft/nothing", "--run-dir", "none")
    assert gone.code == 2
    assert "there is no weft/nothing" in gone.err


def test_without_a_directory_runs_are_numbered(cli, settings, tmp_path):
    for _ in range(2):
        assert cli("train", "instruct", *settings).code == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["instruct", "instruct-2"]


def test_ctrl_c_saves_and_says_how_to_go_on(cli, settings, run, monkeypatch, tmp_path):
    show = TrainingProgress.__call__

    def pressed(self, progress):
        show(self, progress)
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "__call__", pressed)
        said = cli("train", "instruct", *settings, "--run-dir", "mine")
    assert said.code == 130
    assert said.out == ""
    assert "forward and backward  repeated" in said.err
    step = RunReader(tmp_path / "mine").steps()[-1]["step"]
    assert f"interrupted at step {step} of 6; resume with: weft train --resume mine" in said.err

    said = cli("train", "--resume", "mine")
    assert said.code == 0
    assert "step 6/6" in said.err and "step 1/6" not in said.err
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "mine" / adapter).read_bytes() == (run / adapter).read_bytes()


def test_a_run_whose_loss_is_not_finite_fails_with_1(cli, settings):
    said = cli("train", "instruct", *settings, "optimiser.lr=1e38", "--run-dir", "mine")
    assert said.code == 1
    assert "error: " in said.err and "hint: " in said.err
    assert "Traceback" not in said.err


def test_a_changed_base_cannot_be_resumed(cli, settings, small_base, tmp_path, monkeypatch):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    said = cli("train", "instruct", *settings, f"base={base}", "--run-dir", "mine")
    assert said.code == 0
    (tmp_path / "mine" / "DONE.json").unlink()
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    said = cli("train", "--resume", "mine")
    assert said.code == 2
    assert "cannot be resumed: base differ" in said.err


def test_what_is_noticed_while_training_is_told_once():
    told = {"a"}
    assert _news(["a", "b"], told) == ["b"]
    assert _news(["a", "b", "c"], told) == ["c"]
