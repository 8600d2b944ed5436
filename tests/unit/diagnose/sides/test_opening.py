"""Whatever people point at opens as evidence, quickly and without torch, or says what it is not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

import weft
from weft.cli.main import app
from weft.core.errors import InputError
from weft.core.keys import Key
from weft.diagnose.sides.opening import open_evidence
from weft.formats.loaded import UndecidedScale
from weft.formats.registry import FORMATS
from weft.model.adapter import Adapter, Layout, Site, Slot
from weft.model.config import AdapterConfig
from weft.model.noise import uniform
from weft.runs.evidence import Happened, Notice, TrainStep
from weft.runs.reader import RunReader
from weft.runs.recording import About, RecordingWriter
from weft.runs.writer import RunWriter
from weft.training.resolve import experiment_paths, recipe_paths, resolve
from weft.training.train import train

SHORT = ("steps=6", "eval.every=3", "checkpoint_every=2")


@pytest.fixture(scope="module")
def settings(small_base, rows_dir):
    """Of a short run on a tiny base."""
    return [
        f"base={small_base}",
        f"data.path={rows_dir}/train.jsonl",
        f"data.valid_path={rows_dir}/valid.jsonl",
        "data.max_length=128",
        "batch_size=4",
        *SHORT,
    ]


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """A finished run that also said something."""
    root = tmp_path_factory.mktemp("opening") / "run"
    train(resolve("instruct", [*settings, "adapter.rank=2", "adapter.alpha=6"]), root)
    asked = ["generate", str(root), "--prompt", "the cat", "--temp", "0.5", "--max-tokens", "4"]
    assert CliRunner().invoke(app, asked).exit_code == 0
    return root


@pytest.fixture(scope="module")
def boosted(settings, tmp_path_factory):
    """A finished run of two seeds that commits."""
    root = tmp_path_factory.mktemp("opening") / "boosted"
    more = ["adapter.rank=1", "adapter.alpha=4", "boost.steps_per_iteration=3", "seeds=[0,7]"]
    train(resolve("instruct", [*settings, *more, "adapter.dropout=0"]), root)
    return root


def adapter_at(size, count=2):
    """An adapter that matters, at the queries of some layers."""
    sites = [
        Site(f"model.layers.{n}.self_attn.q_proj", "linear", size, size, n) for n in range(count)
    ]
    layout = Layout(tuple(Slot(site, 3, 20.0) for site in sites))
    return Adapter(layout, uniform((layout.size,), -0.5, 0.5, Key.of(2)))


def test_a_run_opens_with_what_it_used(run):
    evidence = open_evidence(str(run))
    config = RunReader(run).manifest.config
    found = {key: setting.value for key, setting in evidence.settings.items()}
    assert evidence.kind == "run"
    assert found["base"] == config["base"]
    assert found["adapter.rank"] == 2
    assert (found["adapter.alpha"], found["adapter.scale"]) == (6, 3)
    assert evidence.settings["adapter.alpha"].origin == "command line"
    assert evidence.settings["adapter.scale"].origin == "computed"
    assert found["environment.torch"] == RunReader(run).manifest.versions["torch"]
    assert evidence.lacks == ()
    assert evidence.about["fingerprints"] == RunReader(run).manifest.fingerprints


def test_a_run_that_failed_says_of_what(run, tmp_path):
    root = tmp_path / "failed"
    shutil.copytree(run, root)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["status"] = "failed"
    error = "NumericError: step 2: not finite\n\nhint: try less"
    manifest["events"].append({"kind": "failed", "error": error})
    (root / "manifest.json").write_text(json.dumps(manifest))
    (root / "DONE.json").unlink()
    evidence = open_evidence(str(root))
    assert evidence.about["error"] == "NumericError: step 2: not finite"
    assert evidence.lacks == (f"{root} is not finished: its status is `failed`",)
    assert open_evidence(str(run)).about["error"] is None


def test_its_steps_are_those_of_its_log(run):
    steps = open_evidence(str(run)).steps
    lines = RunReader(run).steps()
    assert len(steps) == len(lines) == 6
    for step, line in zip(steps, lines, strict=True):
        assert (step.step, step.loss, step.lr) == (line["step"], line["loss"], (line["lr"],))
        assert (step.grad_norm, step.supervised) == (line["grad_norm"], line["supervised_tokens"])
        assert (step.batch, step.labels, step.adapter) == (
            line["batch"],
            line["labels"],
            line["adapter"],
        )
        assert step.passes == (step.step - 1,)
    assert [bool(step.grad_norms) for step in steps] == [True, True, False, True, False, False]


def test_its_last_snapshot_is_the_adapter_that_was_kept(run):
    evidence = open_evidence(str(run))
    assert [(s.when, s.step) for s in evidence.snapshots[:4]] == [
        ("use", 0),
        ("step", 1),
        ("step", 2),
        ("step", 4),
    ]
    last = evidence.last()
    assert (last.when, last.step) == ("end", RunReader(run).kept_step())
    files = load_file(run / "adapter" / "adapter_model.safetensors")
    for name, module in last.modules.items():
        for letter, array in (("A", module.a), ("B", module.b)):
            wanted = files[f"base_model.model.{name}.lora_{letter}.weight"]
            np.testing.assert_array_equal(evidence.array(array), wanted)


def test_what_it_said_is_a_generation(run):
    (generation,) = open_evidence(str(run)).generations
    (line,) = RunReader(run).samples()
    ended = [line["stopped_by"]] if line["finish"] == "stop token" else []
    assert generation.tokens == ((*line["ids"], *ended),)
    assert generation.prompts == (tuple(line["prompt_ids"]),)
    assert generation.settings["temperature"] == 0.5
    assert not generation.settings["greedy"]


def test_notices_are_not_what_could_not_be_seen(run):
    assert open_evidence(str(run)).of(Notice) == ()


def test_a_member_of_a_run_is_a_side_of_its_own(boosted):
    with pytest.raises(InputError, match="trains 2 adapters") as caught:
        open_evidence(str(boosted))
    assert "members/seed-0" in caught.value.hint
    evidence = open_evidence(f"{boosted}/members/seed-7")
    assert evidence.settings["seed"].value == 7
    assert "seeds" not in evidence.settings
    assert {each.model for each in (*evidence.snapshots, *evidence.steps, *evidence.passes)} == {
        "model-0"
    }
    lines = [line for line in RunReader(boosted).steps() if line["member"] == "seed-7"]
    assert [step.loss for step in evidence.steps] == [line["loss"] for line in lines]
    other = open_evidence(f"{boosted}/members/seed-0")
    assert evidence.steps[0].batch != other.steps[0].batch
    assert [(each.what, each.step) for each in evidence.of(Happened)] == [
        ("commit", 3),
        ("commit", 6),
    ]
    with pytest.raises(InputError, match="no member") as caught:
        open_evidence(f"{boosted}/members/seed-8")
    assert "seed-7" in caught.value.hint


def test_an_unfinished_run_says_how_far_it_came(settings, tmp_path):
    def kill(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(resolve("instruct", settings), tmp_path / "run", watch=kill)
    evidence = open_evidence(str(tmp_path / "run"))
    assert len(evidence.steps) == 3
    assert any("not finished: its status is `interrupted`" in text for text in evidence.lacks)
    assert evidence.last().when == "step"


def test_a_run_of_before_opens_without_a_recording(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("recording"))
    steps = [
        {k: v for k, v in line.items() if k not in ("batch", "labels", "adapter")}
        for line in RunReader(run).steps()
    ]
    (copy / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    evidence = open_evidence(str(copy))
    assert [step.batch for step in evidence.steps] == [""] * 6
    assert [s.when for s in evidence.snapshots] == ["step", "end"]  # the last one, the kept one
    assert any("no recording of its passes" in text for text in evidence.lacks)


def test_zeroth_order_steps_have_the_losses_that_they_compared(settings, tmp_path):
    mezo = ["method.name=mezo", "method.preflight=false", "adapter.dropout=0", "steps=3"]
    train(resolve("instruct", [*settings, *mezo, "eval.every=0", "keep=last"]), tmp_path / "run")
    lines = RunReader(tmp_path / "run").evidence()
    for step, line in zip(open_evidence(str(tmp_path / "run")).steps, lines, strict=True):
        assert step.losses == (*line["plus"], *line["minus"])
        assert int(step.random, 16) == line["key"]


def test_a_recording_opens_with_its_events(tmp_path):
    writer = RecordingWriter(tmp_path / "r", About(source="script", name="s.py"))
    writer.add(TrainStep(step=1, loss=2.0))
    evidence = open_evidence(str(tmp_path / "r"))
    assert (evidence.kind, evidence.steps[0].loss) == ("recording", 2.0)
    assert any("cut off" in text for text in evidence.lacks)
    writer.finish(status="finished")
    assert open_evidence(str(tmp_path / "r")).lacks == ()


@pytest.mark.parametrize("name", list(FORMATS))
def test_an_adapter_opens_in_every_format(name, tmp_path):
    adapter = adapter_at(12)
    FORMATS[name].write(adapter, tmp_path / "a", base_ref="weft/tiny", dropout=0.25)
    if name == "npz":
        with pytest.raises(UndecidedScale, match="it may be"):
            open_evidence(str(tmp_path / "a"))
        return
    evidence = open_evidence(str(tmp_path / "a"))
    (snapshot,) = evidence.snapshots
    assert (evidence.kind, snapshot.when) == ("adapter", "end")
    for site, (a_rI, b_Or) in adapter.sites.items():
        module = snapshot.modules[site]
        np.testing.assert_array_equal(evidence.array(module.a), a_rI.numpy())
        np.testing.assert_array_equal(evidence.array(module.b), b_Or.numpy())
        update = 20.0 * b_Or.double() @ a_rI.double()
        assert module.norm_update == pytest.approx(float(update.norm()))
        assert (module.rank, module.scale, module.shape) == (3, 20.0, (12, 12))
    found = {key: setting.value for key, setting in evidence.settings.items()}
    assert (found["base"], found["adapter.dropout"]) == ("weft/tiny", 0.25)
    assert open_evidence(str(tmp_path / "a"), "other").settings["base"].value == "other"


def test_a_certificate_decides_a_scale_that_the_files_leave_open(tmp_path):
    FORMATS["mlx"].write(adapter_at(256), tmp_path / "mlx", base_ref="weft/tiny")
    weft.export_adapter(tmp_path / "mlx", "npz", tmp_path / "npz")
    theirs = open_evidence(str(tmp_path / "mlx")).last().modules
    ours = open_evidence(str(tmp_path / "npz")).last().modules
    assert {each.scale for each in ours.values()} == {20.0}
    assert {n: each.digest_b for n, each in ours.items()} == {
        n: each.digest_b for n, each in theirs.items()
    }


def test_a_configuration_opens_as_training_would_resolve_it(tmp_path):
    for name in recipe_paths():
        evidence = open_evidence(name)
        config = resolve(name).config
        assert evidence.kind == "config"
        assert evidence.settings["adapter.scale"].value == config.adapter.effective_scale
        assert evidence.settings["optimiser.name"].value == config.optimiser.name
    file = tmp_path / "mine.yaml"
    file.write_text("data: {task: instruct}\nsteps: 3\nadapter: {rank: 2, rslora: true}\n")
    settings = open_evidence(str(file)).settings
    scale = AdapterConfig(rank=2, rslora=True).effective_scale
    assert (settings["steps"].value, settings["adapter.scale"].value) == (3, scale)
    assert settings["steps"].origin == "file mine.yaml"


@pytest.mark.parametrize(
    ("ref", "problem", "hint"),
    [
        ("base", "is a base", "--base"),
        ("weft/tiny", "is a base", "--base"),
        ("insruct", "there is no insruct", "did you mean `instruct`"),
        ("weft/concisness", "there is no", "did you mean `weft/conciseness`"),
        (next(iter(experiment_paths())), "is an experiment", "weft experiment"),
    ],
)
def test_names_that_are_no_side_are_told_what_they_are(ref, problem, hint):
    with pytest.raises(InputError, match=problem) as caught:
        open_evidence(ref)
    assert hint in caught.value.hint


def test_directories_that_are_no_side_are_told_what_they_hold(run, small_base, tmp_path):
    def problem(path):
        with pytest.raises(InputError) as caught:
            open_evidence(str(path))
        return caught.value

    assert "is a base" in problem(small_base).problem
    (tmp_path / "empty").mkdir()
    assert "the directory is empty" in problem(tmp_path / "empty").problem
    assert problem(run.parent).hint == f"did you mean {run}?"
    assert problem(str(run)[:-1]).hint == f"did you mean `{run}`?"
    (tmp_path / "notes.txt").write_text("nothing")
    assert "no factors that Weft knows" in problem(tmp_path / "notes.txt").problem
    (tmp_path / "wrong.yaml").write_text("stepz: 3\n")
    assert "steps" in problem(tmp_path / "wrong.yaml").problem
    study = tmp_path / "study"
    (study / "arms").mkdir(parents=True)
    (study / "experiment.json").write_text("{}")
    assert "several runs" in problem(study).problem


def test_two_runs_open_without_torch_and_quickly(run, tmp_path):
    program = (
        "import sys, time; from weft.diagnose.sides.opening import open_evidence;"
        f"started = time.process_time(); sides = [open_evidence({str(run)!r}) for _ in range(2)];"
        "[side.events for side in sides]; took = time.process_time() - started;"
        "loaded = [m for m in ('torch', 'transformers', 'mlx') if m in sys.modules];"
        "print(took, loaded)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    took, loaded = done.stdout.split(" ", 1)
    assert loaded.strip() == "[]", done.stderr
    assert float(took) < 0.5


def test_opening_changes_nothing_of_a_run(run):
    def state():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(run.rglob("*"))}

    before = state()
    open_evidence(str(run))
    assert state() == before


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("steps.jsonl", {"lr": None}, "steps.jsonl, line 1: not what a run writes: lr.0"),
        ("steps.jsonl", {"supervised_tokens": "many"}, "steps.jsonl, line 1: not what a run"),
        ("steps.jsonl", {"step": "x"}, "steps.jsonl"),
        ("samples.jsonl", {"prompt_ids": "xy"}, "samples.jsonl: not what a run writes: prompts"),
        ("samples.jsonl", {"finish": "tired"}, "samples.jsonl: there is no `tired`"),
        ("samples.jsonl", {"parameters": {}}, "samples.jsonl: there is no `stop_ids`"),
    ],
)
def test_a_run_that_was_damaged_is_refused_by_file(run, tmp_path, file, change, problem):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    first, *rest = (copy / file).read_text().splitlines()
    lines = [json.dumps(json.loads(first) | change), *rest]
    (copy / file).write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=re.escape(problem)) as refused:
        open_evidence(str(copy))
    assert "copy the run again" in refused.value.hint


def test_a_run_that_is_being_written_opens(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "DONE.json").unlink()
    with RunWriter.reopen(copy) as writer:
        writer.resume_at(4)
        with (copy / "recording" / "events.jsonl").open("ab") as file:
            file.write(b'{"kind": "pa')
        evidence = open_evidence(str(copy))
    assert any("its status is `running`" in text for text in evidence.lacks)
    assert len(evidence.passes) == 4
