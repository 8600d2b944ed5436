"""The recipes that ship with Weft: what they promise of themselves."""

from __future__ import annotations

import json

import pytest
import yaml

from weft.core.errors import InputError
from weft.model.config import AdapterConfig
from weft.training.experiment import plan
from weft.training.experiment_config import read_design
from weft.training.resolve import experiment_paths, recipe_paths, resolve
from weft.training.train import train


@pytest.mark.parametrize("name", sorted(recipe_paths()))
def test_every_recipe_is_sound_and_says_what_it_is(name):
    config = resolve(name).config
    assert config.description
    assert config.data.task or config.data.path


def test_every_experiment_is_sound_and_says_what_it_is(tmp_path):
    rows = tmp_path / "rows.tsv"
    rows.write_text("sentence\tlabel\nit is good\t1\nit is bad\t0\n")
    own = ["run.base=weft/tiny", f"run.data.path={rows}", f"run.data.test_path={rows}"]
    for name, given in {"reviews-methods": [], "sst2-methods": own}.items():
        design = read_design(name, given)
        assert design.config.description and len(design.config.seeds) == 5
        assert plan(design).record.name == name
    assert sorted(experiment_paths()) == ["reviews-methods", "sst2-methods"]


def test_rank_20_of_the_published_setting_moves_as_fast_as_rank_1():
    arms = yaml.safe_load(experiment_paths()["sst2-methods"].read_text())["arms"]
    adapter = AdapterConfig(**arms["rank 20"]["adapter"])
    assert adapter.rank * adapter.effective_scale**2 == pytest.approx(16**2, rel=2e-3)


def test_an_experiment_is_no_recipe_of_a_run():
    with pytest.raises(InputError, match="reviews-methods is an experiment, not one run"):
        resolve("reviews-methods")


@pytest.mark.parametrize("name", ["tables", "wikisql-mistral"])
def test_the_adapters_for_tables_are_those_of_the_public_mlx_example(name):
    adapter = resolve(name).config.adapter
    assert (adapter.rank, adapter.effective_scale, adapter.dropout) == (8, 20, 0)
    assert (adapter.targets, adapter.layers) == (("q_proj", "v_proj"), "last 16")


def test_mistral_is_trained_as_in_the_public_mlx_example():
    config = resolve("wikisql-mistral").config
    assert (config.base, config.dtype) == ("mistralai/Mistral-7B-v0.1", "bfloat16")
    assert (config.batch_size, config.steps, config.optimiser.lr) == (4, 1000, 1e-5)
    assert (config.optimiser.schedule, config.optimiser.weight_decay) == ("constant", 0)


@pytest.fixture
def questions(tmp_path):
    """A file of rows that are questions about tables."""
    path = tmp_path / "questions.jsonl"
    head = "table: t-{0}\ncolumns: the cat, on\nQ: is {0}?\nA: SELECT on FROM t-{0}"
    path.write_text("".join(json.dumps({"text": head.format(i)}) + "\n" for i in range(12)))
    return path


@pytest.mark.parametrize("name", ["tables", "wikisql-mistral"])
def test_both_run_on_a_file_that_is_given_by_path(name, questions, small_base, tmp_path):
    small = (f"data.path={questions}", "data.valid_fraction=0.25", f"base={small_base}")
    short = ("device=cpu", "dtype=float32", "steps=2", "eval.every=1", "eval.batch_size=2")
    outcome = train(resolve(name, [*small, *short]), tmp_path / "run")
    (result,) = outcome.results.values()
    assert result["metrics"] == ["token_accuracy", "exact_match", "logical_form"]
    assert result["metric"] == "exact_match"
    assert {"exact_match", "logical_form"} <= result.keys()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    notices = " ".join(manifest["notices"])
    assert "`adapter.layers` is `last 16` and the base has 3: all are used" in notices
    assert ("clears data.task of tables.yaml" in notices) == (name == "tables")
