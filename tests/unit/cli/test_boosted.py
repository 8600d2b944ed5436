"""Boosted and zeroth-order runs on the command line: what is said of them, and what leads on."""

from __future__ import annotations

import json
import shutil

import pytest

from weft.cli.checks import SHOWN, checks
from weft.cli.progress import rounds_line
from weft.cli.report import page
from weft.report.figures import curves
from weft.runs.reader import RunReader
from weft.training.advance import Ended

BOOSTED = ["method.name=mezo", "adapter.rank=4", "adapter.dropout=0", "adapter.alpha=16"]
BOOSTED += ["boost.steps_per_iteration=4", "optimiser.lr=1e-2"]


@pytest.fixture(scope="session")
def boosted(tmp_path_factory, settings):
    """A finished boosted run. Tests that write into it use a copy."""
    from weft.training.resolve import resolve
    from weft.training.train import train

    root = tmp_path_factory.mktemp("boosted") / "run"
    train(resolve("instruct", [*settings, *BOOSTED, "keep=last"]), root)
    return root


def test_what_is_really_used_is_shown_with_what_happens(cli, settings):
    said = cli("train", "instruct", *settings, *BOOSTED, "--run-dir", "mine")
    assert said.code == 0
    block, _, rest = said.err.partition("\n\n")
    facts = {line[:12].strip(): line[12:] for line in block.splitlines()}
    assert facts["adapter"] == "rank 1 (forced to 1 by boosting, 4 was asked), alpha 16, scale 16"
    assert facts["boosting"].startswith("commit every 4 steps, 1 commit, into the frozen stack")
    assert facts["method"].startswith("mezo: two-sided, 1 direction a step, gaussian, eps 0.001")
    assert facts["preflight"].startswith("slopes of ") and "at half of it, by" in facts["preflight"]
    assert "note: `adapter.rank` is forced to 1 by boosting, 4 was asked [command line]" in rest
    assert "step 1/6  perturbed loss " in rest and "\nstep 4: commit 1\n" in rest
    header, before, _, certificate = said.out.split("\n\n")[0].splitlines()
    assert header.split() == ["held-out", "loss", "perplexity", "token", "accuracy"]
    assert "-" not in before.split()
    assert certificate.startswith("certificate: read back, rank ")


def test_check_shows_the_same_block_without_weights(cli, settings):
    said = cli("check", "instruct", *settings, *BOOSTED)
    assert said.code == 0
    assert "rank 1 (forced to 1 by boosting, 4 was asked), alpha 16, scale 16" in said.out
    assert "commit every 4 steps, 1 commit, into the frozen stack" in said.out
    assert "2 forwards a step" in said.out and "12 forwards" in said.out
    assert "forced to 1 by boosting, 4 was asked" in said.err


def test_a_preflight_that_warns_is_a_notice(cli, settings):
    said = cli("train", "instruct", *settings, *BOOSTED, "method.eps=1e-9", "--run-dir", "mine")
    assert said.code == 0
    assert "note: preflight: " in said.err
    given = [*settings, *BOOSTED, "method.eps=1e-30", "steps=1", "eval.every=1"]
    said = cli("train", "instruct", *given, "--run-dir", "flat")
    assert said.code == 0
    assert "preflight   no loss changes at eps 1e-30\n" in said.err


@pytest.mark.parametrize(
    ("ended", "line"),
    [
        ([Ended("adapter", 0, True, 1, 100)], "step 100: commit 1"),
        ([Ended("adapter", 3, True, 2, 80)], "step 100: commit 2, of step 80"),
        ([Ended("a", 1, True, 2, 100), Ended("b", 1, True, 2, 100)], "step 100: commit 2 (2 ad"),
        ([Ended("adapter", 0, False, 0, 0)], "step 100: nothing learnt: the round begins anew"),
        (
            [Ended("a", 1, True, 2, 90), Ended("b", 1, False, 1, 0)],
            "step 100: commit 2 (1 of 2 adapters), of step 90; nothing learnt (1 of 2 adapters): ",
        ),
        ([Ended("a", 11, True, 12, 100)], ""),
        ([Ended("a", 19, True, 20, 100)], "step 100: commit 20"),
    ],
)
def test_how_rounds_ended_is_one_line(ended, line):
    found = rounds_line(100, ended)
    assert found.startswith(line) and bool(found) == bool(line)


def test_inspect_says_that_the_files_are_as_recorded_and_replays_them(cli, boosted):
    said = cli("inspect", boosted, "--replay")
    assert said.code == 0
    wanted = "as recorded  rank 2 = 1 commit of rank 1 and the open round, scale 16, 21 sites\n"
    assert wanted in said.out
    last = said.out.splitlines()[-1]
    assert last.endswith("replayed from 6 steps of evidence and 1 commit: the same, bit for bit")
    found = json.loads(cli("inspect", boosted, "--replay", "--json").out)
    assert found["replayed"][0]["difference"] is None


def test_evidence_that_makes_another_adapter_exits_with_1(cli, boosted, tmp_path):
    copy = shutil.copytree(boosted, tmp_path / "copy")
    path = copy / "evidence.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2]["slopes"] = [lines[2]["slopes"][0] + 1]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli("inspect", copy).code == 0
    said = cli("inspect", copy, "--replay")
    assert said.code == 1
    assert "BROKEN " in said.out and "not the same: 21 of 21 sites, by up to " in said.out


def test_what_cannot_be_replayed_says_why(cli, run, boosted):
    said = cli("inspect", run, "--replay")
    assert said.code == 2 and "`backprop` leaves no evidence" in said.err
    said = cli("inspect", boosted / "adapter", "--replay")
    assert said.code == 2 and "is not a run" in said.err


@pytest.mark.parametrize("to", ["peft", "mlx", "merged"])
def test_a_boosted_run_is_exported_as_one_adapter_or_model(to, cli, boosted):
    said = cli("export", boosted, "--to", to, "--out", f"as-{to}")
    assert said.code == 0, said.err
    if to != "merged":
        (facts,) = json.loads(cli("inspect", f"as-{to}", "--json").out)["adapters"]
        assert {(site["rank"], site["scale"]) for site in facts["sites"]} == {(2, 16.0)}


def test_the_page_has_the_commits_and_the_checks(boosted, tmp_path, cli):
    reader = RunReader(boosted)
    (curve,) = curves(reader)
    assert curve.perturbed and curve.commits == [4]
    assert dict(checks(reader)) | {"certificate": "", "preflight": ""} == {
        "preflight": "",
        "commits": "1: after step 4",
        "certificate": "",
        "base": "its weights did not change during the run",
    }
    shown = page(reader)
    assert shown.commands[-1].endswith("--replay")
    labels = [metric.label for metric in shown.metrics]
    assert labels == ["held-out loss", "perplexity", "token accuracy"]
    assert all(metric.difference is not None for metric in shown.metrics)
    assert "the loss is in nats a token" in shown.metrics_note
    copy = shutil.copytree(boosted, tmp_path / "copy")
    assert cli("report", copy).code == 0
    source = (copy / "report.html").read_text()
    assert "What was checked" in source and "1: after step 4" in source
    (copy / "tables" / "valid.jsonl").unlink()
    assert page(RunReader(copy)).headline.startswith("Training loss at perturbed points")


def test_many_commits_are_shortened(boosted, tmp_path):
    copy = shutil.copytree(boosted, tmp_path / "copy")
    fields = json.loads((copy / "manifest.json").read_text())
    event = next(each for each in fields["events"] if each["kind"] == "commit")
    steps = range(100, 100 * (SHOWN + 3), 100)
    fields["events"] = [event | {"step": step} for step in steps]
    (copy / "manifest.json").write_text(json.dumps(fields))
    found = dict(checks(RunReader(copy)))["commits"]
    assert found == "14: after steps 100 200 300 ... 1,400"


@pytest.fixture(scope="session")
def choice(tmp_path_factory, small_base):
    """A finished run that decides between two words."""
    from weft.training.resolve import resolve
    from weft.training.train import train

    root = tmp_path_factory.mktemp("choice")
    for split in ("train", "valid"):
        rows = [f"the {noun} {verb}\t{label}" for noun in "abcdefgh" for verb, label in PAIRS]
        (root / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    given = [f"base={small_base}", f"data.path={root}", "objective.name=choice", *BOOSTED]
    train(resolve("instruct", [*given, "steps=4", "eval.every=2", "batch_size=4"]), root / "run")
    return root / "run"


PAIRS = (("ran", 1), ("sat", 0))


def test_a_choice_has_an_accuracy_before_and_after_and_no_perplexity(cli, choice, tmp_path):
    reader = RunReader(choice)
    assert [step for step, _ in reader.hits()["choice"]] == [0, 2, 4]
    shown = page(reader)
    assert [metric.label for metric in shown.metrics] == ["held-out loss", "choice"]
    assert shown.metrics[1].left == pytest.approx(reader.hits()["choice"][0][1].means()[0])
    assert "nats a row" in shown.metrics_note
    copy = shutil.copytree(choice, tmp_path / "copy")
    said = cli("eval", copy)
    assert said.out.splitlines()[0].split() == ["loss", "choice"]
    assert "valid: 16 rows\n" in said.err
    assert RunReader(copy).results("eval")["commits"] == reader.results("eval")["commits"]
    assert cli("inspect", copy, "--replay").code == 0


def test_runs_that_choose_are_compared_by_the_loss_that_they_trained(cli, choice, tmp_path):
    copy = shutil.copytree(choice, tmp_path / "copy")
    of_run = json.loads(cli("eval", copy, "--json").out)
    said = cli("compare", "base", copy, "--prompts", 0)
    assert "\nloss  of the choice between candidates, nats a row\n" in said.out
    assert "perplexity" not in said.out
    found = json.loads(cli("compare", "base", copy, "--prompts", 0, "--json").out)
    assert found["loss"][str(copy)] == pytest.approx(of_run["eval_loss"], abs=1e-6)
    assert found["metrics"]["choice"][str(copy)] == of_run["choice"]
    assert (found["objective"], found["perplexity"]) == ("choice", None)
    assert found["supervised_tokens"] > found["examples"]  # divergences are of tokens


def test_a_choice_is_shown_before_and_after_by_train(cli, choice):
    config = [f"{key}" for key in (f"data.path={choice.parent}", "objective.name=choice", *BOOSTED)]
    base = RunReader(choice).manifest.config["base"]
    given = ["steps=2", "eval.every=1", f"base={base}", "--run-dir", "mine"]
    said = cli("train", "instruct", *config, *given)
    header, before, *_ = said.out.splitlines()
    assert header.split() == ["held-out", "loss", "choice"]
    assert before.split()[0] == "before" and len(before.split()) == 3 and "-" not in before.split()


def test_rows_that_were_scored_while_training_are_told_from_all(cli, choice, tmp_path):
    base = RunReader(choice).manifest.config["base"]
    config = [f"data.path={choice.parent}", "objective.name=choice", *BOOSTED, f"base={base}"]
    given = ["steps=2", "eval.every=1", "eval.rows=6", "--run-dir", "few"]
    said = cli("train", "instruct", *config, *given)
    _, before, few, all_rows, *_ = said.out.splitlines()
    assert before.startswith("before, first 6 rows  ")
    assert few.startswith("best (step ") and "), first 6 rows  " in few
    assert all_rows.startswith("best (step ") and "), all 16 rows  " in all_rows
    reader = RunReader(tmp_path / "few")
    before, after = reader.before_and_after("adapter")["choice"]
    assert len(before.ids) == len(after.ids) == 6
    assert "On 6 validation rows, before training and after" in page(reader).metrics_note
