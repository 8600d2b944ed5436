"""The recipes that ship with Weft: what they promise of themselves."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from weft.core.errors import InputError
from weft.formats.peft import read_adapter
from weft.model.config import AdapterConfig
from weft.model.facts import skeleton
from weft.model.sites import choose_sites
from weft.training.experiment import plan
from weft.training.experiment_config import read_design
from weft.training.refs import locate
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
    seeds = {"sst2-methods": 5, "reviews-methods": 5, "countdown-methods": 3}
    for name in experiment_paths():
        design = read_design(name, own if name == "sst2-methods" else [])
        assert design.config.description
        assert len(design.config.seeds) == seeds.get(name, 4)
        assert plan(design).record.name == name


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


@pytest.mark.parametrize("name", ["countdown-methods", "conciseness-methods"])
def test_all_ways_of_es_sample_as_many_completions(name):
    arms = read_design(name).arms(dict.fromkeys(read_design(name).drafts, 1))
    methods = [resolved.config.method for resolved in arms.values()]
    assert len({(each.population, each.samples_per_generation) for each in methods}) == 1
    settings = [resolved.config.objective.decoding for resolved in arms.values()]
    assert all(each == settings[0] for each in settings)


PUBLISHED = [
    *["adapter.init=zero", "method.antithetic=false", "method.shaping=zscore"],
    *["method.noise.space=factor", "method.noise.init_scale=4", "optimiser.lr=0.01"],
]
"""What makes `countdown-qwen` and `conciseness-qwen` the recipe that they follow."""

QWEN = {
    "countdown-qwen": (1, 901_120, 128, 1000, 1024),
    "conciseness-qwen": (8, 7_208_960, 2, 30, 100),
}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A base with the shapes of Qwen2.5-7B and no weights."""
    from transformers import Qwen2Config

    directory = tmp_path_factory.mktemp("qwen")
    shapes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
    Qwen2Config(**shapes, **heads).save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize(("name", "facts"), QWEN.items())
def test_the_published_recipe_of_es_can_be_said_exactly(name, facts, qwen):
    config = resolve(name, PUBLISHED).config
    method, noise = config.method, config.method.noise
    assert (method.population, method.antithetic, method.shaping) == (30, False, "zscore")
    assert (noise.space, noise.fraction) == ("factor", 0.1)
    assert (noise.init_scale, noise.perturb_scale) == (4, 1)
    optimiser = config.optimiser
    assert (optimiser.name, optimiser.lr, optimiser.schedule) == ("sgd", 0.01, "constant")
    assert (optimiser.momentum, optimiser.weight_decay, optimiser.clip) == (0, 0, None)
    layout = choose_sites(skeleton(qwen), config.adapter)
    decoding = config.objective.decoding
    assert decoding.greedy and config.data.chat and config.adapter.effective_scale == 2
    found = (config.adapter.rank, layout.size, method.samples_per_generation, config.steps)
    assert (*found, decoding.max_tokens) == facts
    assert {slot.site.layer for slot in layout.slots} == set(range(10))


@pytest.mark.parametrize("name", QWEN)
@pytest.mark.parametrize("settings", [[], PUBLISHED], ids=["weft", "published"])
def test_the_recipes_for_qwen_run_on_a_small_one(
    name, settings, small_base, make_model, tmp_path, capsys
):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    shapes = {"vocab_size": 320, "max_position_embeddings": 1024, "num_hidden_layers": 11}
    make_model("qwen2", **shapes).save_pretrained(base)
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    tokenizer["chat_template"] = "{% for m in messages %}User: {{ m['content'] }}\n{% endfor %}"
    (base / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    short = ["objective.decoding.max_tokens=2", "method.population=2", "eval.rows=2"]
    few = ["steps=1", "dtype=float32", "device=cpu", "eval.every=1", "data.rows=2"]
    resolved = resolve(name, [f"base={base}", *short, *few, *settings])
    assert train(resolved, tmp_path / "run").finished
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["block"]["sites"].endswith("in layers 0-9")


@pytest.mark.parametrize("task", ["countdown", "conciseness"])
def test_a_bundled_adapter_is_what_its_recipe_trains(task):
    start, run = resolve(f"{task}-start").config, resolve(task).config
    assert start.adapter == run.adapter
    place = locate(run.start)
    assert place.base == run.base
    (path,) = place.adapters.values()
    layout = choose_sites(skeleton(run.base), run.adapter)
    found = read_adapter(path).adapter
    assert found.layout.size == layout.size and found.flat.isfinite().all()


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
