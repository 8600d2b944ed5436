"""`weft report` and `weft demo`: what is drawn and written of a run."""

from __future__ import annotations

import json
import shutil

import pytest

from weft.cli import demo
from weft.cli.report import COMPARISON, page
from weft.report.figures import curves
from weft.runs.reader import RunReader


@pytest.fixture
def mine(run, tmp_path):
    """A copy of the run, to write into."""
    return shutil.copytree(run, tmp_path / "mine")


def test_curves_are_the_losses_of_the_run(run):
    reader = RunReader(run)
    (curve,) = curves(reader)
    assert curve.train == [(record["step"], record["loss"]) for record in reader.steps()]
    assert [step for step, _ in curve.valid] == [0, 3, 6]


def test_the_page_needs_no_model(cli, mine):
    said = cli("report", mine)
    assert said.code == 0
    names = ("figures/loss.png", "figures/time_breakdown.png", "report.html")
    assert said.out.split() == [f"{mine}/{name}" for name in names]
    source = (mine / "report.html").read_text()
    assert "Held-out loss" in source and source.count("data:image/png") == 2
    assert "<h2>Time</h2>" in source and "<td>loading the base</td>" in source
    assert "adapter.rank" in source and "(command line)" in source
    shown = page(RunReader(mine)).metrics
    assert [m.label for m in shown] == ["held-out loss", "perplexity", "token accuracy"]
    kept = json.loads((mine / "results" / "eval.json").read_text())
    before = RunReader(mine).table("token_accuracy-step-0").means()[0]
    assert (shown[-1].left, shown[-1].right) == (before, kept["token_accuracy"])


def test_the_page_shows_a_stored_comparison(cli, mine):
    place = mine / "results" / f"{COMPARISON}.json"
    assert cli("compare", "base", mine, "--prompts", 2, "--out", place).code == 0
    shown = page(RunReader(mine))
    found = json.loads(place.read_text())
    assert len(shown.samples) == 2
    assert shown.metrics[0].left == found["loss"]["base"]
    assert shown.metrics[-1].label == "token accuracy"
    assert cli("report", mine).code == 0


def test_an_unfinished_run_has_a_page(mine):
    for path in ("tables", "results", "adapter"):
        shutil.rmtree(mine / path)
    assert "Training loss" in page(RunReader(mine)).headline
    (mine / "steps.jsonl").write_text("")
    assert "No step was taken" in page(RunReader(mine)).headline


def test_several_members_have_a_curve_each(cli, settings, tmp_path):
    assert cli("train", "instruct", *settings, "seeds=[0,1]", "--run-dir", "two").code == 0
    reader = RunReader(tmp_path / "two")
    assert [curve.label for curve in curves(reader)] == ["seed-0", "seed-1"]
    assert "Of 2 adapters this is seed-" in page(reader).metrics_note
    assert cli("report", "two").code == 0


def test_the_demo_trains_compares_and_reports(cli, settings, rows_dir, monkeypatch, tmp_path):
    rows = shutil.copytree(rows_dir, tmp_path / "rows")
    shutil.copy(rows / "valid.jsonl", rows / "test.jsonl")
    said = cli("demo", *settings, f"data.path={rows}")
    assert said.code == 0
    assert "12 test rows" in said.out
    assert "the base's weights did not change" in said.out
    assert said.out.count("prompt  ") == demo.SHOWN
    root = tmp_path / "runs" / "demo"
    for path in (root / "report.html", root / "figures" / "loss.png", root / "adapter"):
        assert path.exists() and str(path.relative_to(tmp_path)) in said.out
