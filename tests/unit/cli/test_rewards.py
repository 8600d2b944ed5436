"""Runs with a reward as a newcomer meets them: every number is a reward, and more of it is better.

A user's own reward (the share of vowels) on the rows of the other tests, under a tiny base.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import weft
from weft.cli.report import COMPARISON, page
from weft.runs.reader import COMPLETIONS, COMPLETIONS_BEFORE, RunReader

REWARD = """
def reward(row, completion):
    if row["prompt"].endswith("mat"):
        raise ValueError("no mats")
    return sum(letter in "aeiou" for letter in completion) / 4 - 1
"""
RUN = """
base: {base}
data: {{path: {rows}}}
objective: {{name: reward, file: {file}, decoding: {{max_tokens: 4}}}}
method: {{name: es, population: 4, samples_per_generation: 4}}
adapter: {{rank: 2, dropout: 0}}
steps: 4
eval: {{every: 2}}
"""
GRADED = 9
"""Of the 12 validation rows: the others are about mats."""


@pytest.fixture(scope="module")
def config(small_base, rows_dir, tmp_path_factory) -> Path:
    """A run's file."""
    directory = tmp_path_factory.mktemp("rewards")
    file = directory / "vowels.py"
    file.write_text(REWARD)
    path = directory / "run.yaml"
    path.write_text(RUN.format(base=small_base, rows=rows_dir, file=file))
    return path


@pytest.fixture(scope="module")
def rewarded(config, tmp_path_factory) -> Path:
    """A finished run, which Python started. Tests that write into it use a copy."""
    root = tmp_path_factory.mktemp("rewarded") / "run"
    weft.train(config, (), root)
    return root


@pytest.fixture
def mine(rewarded, tmp_path):
    return shutil.copytree(rewarded, tmp_path / "mine")


def own(text: str) -> float:
    return sum(letter in "aeiou" for letter in text) / 4 - 1


def test_training_shows_rewards_and_what_could_not_be_graded(cli, config):
    said = cli("train", config, "--run-dir", "mine")
    assert said.code == 0, said.err
    first = next(line for line in said.err.splitlines() if line.startswith("step 1/4"))
    assert "  members -" in first and " ± " in first and "completions/s" in first
    assert "reward -" in first and "loss" not in first and "tok/s" not in first
    assert "not graded" in said.err
    header, before, kept = said.out.splitlines()[:3]
    assert header.split()[:4] == ["held-out", "reward", "standard", "error"]
    assert "loss" not in header and "kl to base" in header
    assert before.startswith("before ") and kept.startswith("best (step ")


def test_a_population_around_zero_is_said_to_be_on_a_saddle(cli, config):
    zero = ["adapter.init=zero", "method.antithetic=false", "steps=1", "eval.every=0", "keep=last"]
    said = cli("train", config, *zero, "--run-dir", "mine")
    assert said.code == 0, said.err
    assert "preflight" in said.err and "the centre is zero, a saddle" in said.err
    assert "note: es: the centre is zero" in said.err


def test_a_reward_that_never_works_ends_no_run(cli, config, tmp_path):
    file = tmp_path / "never.py"
    file.write_text("def reward(row, completion):\n    raise ValueError('never')\n")
    said = cli("train", config, f"objective.file={file}", "steps=2", "--run-dir", "mine")
    assert said.code == 0, said.err
    assert "20 not graded  no member differs" in said.err
    why = "note: not graded at step 1: 20 x ValueError: never (evidence.jsonl has all)"
    assert said.err.count(why) == said.err.count("note: not graded") == 1
    assert "valid: not one completion of adapter could be graded: ValueError: never" in said.err
    found = RunReader(tmp_path / "mine").results("eval")
    assert found["failures"] == {"ValueError: never": 12} and found["eval_loss"] is None
    for verb in (["eval", "mine"], ["report", "mine"], ["inspect", "mine", "--replay"]):
        assert cli(*verb).code == 0
    assert cli("compare", "base", "mine").code == 0


def test_python_draws_what_the_command_draws(rewarded):
    names = sorted(path.name for path in (rewarded / "figures").iterdir())
    assert names == ["reward.png", "time_breakdown.png"]


def test_the_evaluation_is_that_of_the_completions(rewarded):
    """Mean, standard error and failures from the table, and the table from the texts."""
    reader = RunReader(rewarded)
    found, row = reader.results("eval"), reader.table("reward").row("adapter")
    values = row.sums[row.counts > 0]
    assert len(values) == found["graded"] == GRADED
    assert found["reward"] == pytest.approx(values.mean()) == -found["eval_loss"]
    error = np.std(values, ddof=1) / math.sqrt(GRADED)
    assert found["standard_error"] == pytest.approx(error)
    assert sum(found["failures"].values()) == 12 - GRADED
    assert found["grader"]["reward"] == "reward" and found["grader"]["sha256"]
    for name in (COMPLETIONS, COMPLETIONS_BEFORE):
        for said in reader.results(name)["adapter"]:
            is_mat = said["prompt"].endswith("mat")
            assert said["reward"] == (None if is_mat else own(said["completion"]))
            assert said["length"] <= 4


def test_a_step_says_how_far_it_went_in_units_of_the_noise(rewarded):
    """Without momentum: the rate times the direction, which is in that unit; root mean square."""
    reader = RunReader(rewarded)
    tensors = load_file(rewarded / "adapter" / "adapter_model.safetensors")
    size = sum(tensor.numel() for tensor in tensors.values())
    for record in reader.steps():
        wanted = record["lr"] * record["grad_norm"] / math.sqrt(size)
        assert record["update_noise"] == pytest.approx(wanted, rel=1e-5)
    assert any(record["update_noise"] > 0.1 for record in reader.steps())


def test_eval_shows_the_reward_its_error_and_its_parts(cli, mine):
    said = cli("eval", mine)
    assert said.code == 0, said.err
    header, row = said.out.splitlines()[:2]
    assert header.split() == ["reward", "standard", "error", "length", "cut", "kl", "to", "base"]
    kept = json.loads((mine / "results" / "eval.json").read_text())
    assert float(row.split()[1]) == pytest.approx(kept["reward"], abs=1e-4)
    assert f"not graded: {12 - GRADED} (" in said.err


def test_a_comparison_is_of_rewards_and_of_what_b_said(cli, mine):
    place = mine / "results" / f"{COMPARISON}.json"
    said = cli("compare", "base", mine, "--prompts", 2, "--out", place)
    assert said.code == 0, said.err
    assert "tokens that B said" in said.out and "loss" not in said.out
    found = json.loads(place.read_text())
    a, b = found["a"], found["b"]
    reward = found["metrics"]["reward"]
    line = next(line for line in said.out.splitlines() if line.startswith("reward "))
    change = reward[b] - reward[a]
    assert [float(cell) for cell in line.split()[1:4]] == pytest.approx(
        [reward[a], reward[b], change], abs=1e-3
    )
    assert found["loss_difference"]["estimate"] == pytest.approx(-change)
    kept = json.loads((mine / "results" / "eval.json").read_text())
    assert found["divergence"]["kl_ba"]["estimate"] == pytest.approx(kept["kl_to_base"], rel=1e-4)
    assert "(reward " in said.out and "wanted" not in said.out
    shown = page(RunReader(mine))
    assert shown.metrics[0].label == "held-out reward" and not shown.metrics[0].lower_is_better
    assert shown.metrics[0].difference.estimate == pytest.approx(change)
    assert shown.sides == ("base", "adapter")


def test_the_page_shows_rewards_samples_and_the_population(cli, mine):
    said = cli("report", mine)
    assert said.code == 0, said.err
    assert said.out.split()[0] == f"{mine}/figures/reward.png"
    shown = page(RunReader(mine))
    assert shown.headline.startswith("Held-out reward ")
    assert shown.sides == ("before", "after")
    labels = [metric.label for metric in shown.metrics]
    assert labels == ["held-out reward", "length", "cut", "kl to base"]
    before, after = RunReader(mine).before_and_after("adapter")["reward"]
    assert (shown.metrics[0].left, shown.metrics[0].right) == (before.mean, after.mean)
    assert len(shown.samples) == 12 and shown.samples[0].notes[1].startswith("reward ")
    population = dict(shown.population)
    steps = RunReader(mine).steps()
    assert population["completions"] == f"{4 * 4 * 5:,}"
    assert population["not graded"] == f"{sum(record['failed'] for record in steps):,.0f}"
    assert "Not graded of these: 3 (" in shown.metrics_note
    source = (mine / "report.html").read_text()
    assert "standard deviation" not in source and "Rewards over the steps" in source


def test_an_unfinished_run_shows_its_rewards(mine):
    for part in ("tables", "results", "adapter"):
        shutil.rmtree(mine / part)
    assert page(RunReader(mine)).headline.startswith("Training reward ")


def test_an_experiment_of_rewards_has_no_losses(cli, config, tmp_path):
    text = config.read_text().replace("steps: 4\n", "").replace("\n", "\n  ")
    Path("experiment.yaml").write_text(
        f"run:\n  {text.strip()}\nseeds: [0, 1]\nbudget: {{steps: 2}}\n"
        "arms:\n  pairs: {}\n  single: {method: {antithetic: false}}\n"
    )
    said = cli("experiment", "experiment.yaml", "--out", "found")
    assert said.code == 0, said.err
    assert "loss" not in said.out.replace("a lower loss, wins", "")
    root = tmp_path / "found"
    assert (root / "figures" / "reward.png").is_file()
    assert not (root / "figures" / "loss.png").exists()
    rows = list(csv.DictReader((root / "curves.csv").open()))
    for row in rows:
        if row["valid_loss"]:
            assert float(row["valid_accuracy"]) == -float(row["valid_loss"])
    source = (root / "report.html").read_text()
    assert "Validation reward" in source and "Validation loss" not in source


def test_an_experiment_without_evaluations_names_no_figure_that_is_not_there(cli, config):
    text = config.read_text().replace("steps: 4\n", "").replace("\n", "\n  ")
    Path("blind.yaml").write_text(
        f"run:\n  {text.strip()}\nseeds: [0]\nbudget: {{steps: 1}}\n"
        "arms:\n  pairs: {}\n  single: {method: {antithetic: false}}\n"
    )
    said = cli("experiment", "blind.yaml", "run.eval.every=0", "run.keep=last", "--out", "blind")
    assert said.code == 0, said.err
    assert "report " in said.out + said.err and "figures" not in said.out + said.err


def test_rows_with_a_reward_are_graded_also_where_a_loss_is_asked_for(cli, small_base):
    said = cli("eval", small_base, "--task", "conciseness", "--rows", 2)
    assert said.code == 0, said.err
    header = said.out.splitlines()[0].split()
    assert header[:2] == ["loss", "perplexity"] and {"reward", "normalised"} <= set(header)


def test_a_population_that_follows_a_loss_shows_losses(cli, settings, tmp_path):
    es = ["method.name=es", "method.population=4", "method.samples_per_generation=4"]
    kept = [each for each in settings if not each.startswith("batch_size")]
    own = ["optimiser.name=sgd", "optimiser.lr=0.5", "adapter.dropout=0", "steps=2"]
    said = cli("train", "instruct", *kept, *es, *own, "batch_size=4", "--run-dir", "mine")
    assert said.code == 0, said.err
    assert "  loss 5." in said.err and "tok/s" in said.err and "reward" not in said.out
    assert (tmp_path / "mine" / "figures" / "loss.png").is_file()
    assert page(RunReader(tmp_path / "mine")).headline.startswith("Held-out loss ")
