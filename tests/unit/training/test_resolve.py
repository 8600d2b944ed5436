"""What a configuration may say: bounds, settings that nothing reads, and contradictions."""

from __future__ import annotations

import pytest

from weft.core.errors import InputError
from weft.training.resolve import from_record, resolve


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("optimiser.lr=.nan", "optimiser.lr: input should be a finite number"),
        ("optimiser.lr=[1e-3, .inf]", "optimiser.lr: input should be a finite number"),
        ("optimiser.weight_decay=.inf", "weight_decay: input should be a finite number"),
        ("optimiser.clip=.inf", "clip: input should be a finite number"),
        ("optimiser.betas=[2, 5]", "optimiser.betas: input should be less than 1"),
        ("optimiser.betas=[0.9, -0.1]", "optimiser.betas: input should be greater than"),
        ("adapter.alpha=.inf", "adapter.alpha: input should be a finite number"),
        ("epochs=.inf", "epochs: input should be"),
        ("epochs=1e300", "epochs: input should be less than"),
        ("seed=-1", "seed: input should be greater than or equal to 0"),
        ("seeds=[0, -1]", "seeds: input should be greater than or equal to 0"),
        ("seeds=[]", "seeds: tuple should have at least 1 item"),
        ("seeds=[1, 1]", "names one twice"),
        ("optimiser.momentum=0.9", "adamw does not use `momentum`"),
    ],
)
def test_a_value_out_of_bounds_is_a_problem(override, problem):
    with pytest.raises(InputError) as caught:
        resolve("instruct", [override])
    assert problem in caught.value.problem


@pytest.mark.parametrize("override", ["optimiser.betas=[0.8, 0.9]", "optimiser.eps=1e-6"])
def test_sgd_takes_no_settings_of_adamw(override):
    sgd = "optimiser.name=sgd"
    assert resolve("instruct", [sgd, "optimiser.momentum=0.9", "optimiser.eps=1e-8"])
    with pytest.raises(InputError, match="sgd does not use"):
        resolve("instruct", [sgd, override])


def test_seeds_clear_the_seed_of_a_file_and_the_other_way_round(tmp_path):
    found = resolve("instruct", ["seeds=[1,2]"])
    assert [lane.seed for lane in found.config.lanes] == [1, 2]
    assert any("clears seed of instruct.yaml" in notice for notice in found.notices)
    path = tmp_path / "mine.yaml"
    path.write_text("data: {task: instruct}\nsteps: 1\nseeds: [1, 2]\n")
    found = resolve(str(path), ["seed=7"])
    assert [lane.seed for lane in found.config.lanes] == [7]
    path.write_text(path.read_text() + "seed: 3\n")
    with pytest.raises(InputError, match="gives both `seed`"):
        resolve(str(path))


def test_a_run_with_seeds_is_read_back(tmp_path):
    stored = resolve("instruct", ["seeds=[1,2]"]).config
    assert from_record(stored.model_dump(mode="json"), {}, "manifest.json").config == stored


@pytest.mark.parametrize(
    "overrides",
    [
        ["steps=5", "epochs=2"],
        ["seed=0", "seeds=[1,2]"],
        ["data.path=rows.jsonl", "data.task=instruct"],
        ["data={path: rows.jsonl}", "data.task=instruct"],
        ["adapter.scale=2", "adapter.alpha=4"],
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_overrides_that_contradict_each_other_are_refused(overrides, turned):
    if turned and not overrides[0].startswith("data={"):
        overrides = overrides[::-1]
    with pytest.raises(InputError, match="both on the command line"):
        resolve("instruct", overrides)


def test_null_contradicts_nothing():
    found = resolve("instruct", ["steps=5", "epochs=null", "adapter.rslora=false"])
    assert (found.config.steps, found.config.epochs) == (5, None)
    assert (
        resolve("instruct", ["adapter.rslora=false", "adapter.scale=2"]).config.adapter.scale == 2
    )


MEZO = ("method.name=mezo", "adapter.dropout=0")


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ((*MEZO, "method.eps=0"), "method.eps: input should be greater than 0, got 0"),
        ((*MEZO, "method.eps=.nan"), "method.eps: input should be a finite number, got nan"),
        ((*MEZO, "method.directions=0"), "greater than or equal to 1, got 0 [command line]"),
        ((*MEZO, "method.sides=three"), "method.sides: input should be 'two' or 'one'"),
        ((*MEZO, "method.noise=flat"), "input should be 'gaussian' or 'rademacher'"),
        (("method.name=[mezo]",), "method.name: there is no \"['mezo']\"; the names are backprop"),
        (("optimiser.lr=[1e-4, 1.0000001e-4]",), "two that are the same in six digits"),
        (
            ("objective.name=choice", "data.pad_target=true", "data.train_on_prompt=true"),
            "choice reads no tokens but prompts and candidates: leave `data.train_on_prompt` and "
            "`data.pad_target` out",
        ),
        (("method.name=mzo",), "there is no 'mzo'; the names are backprop, mezo, es (did you mean"),
        (("method.eps=1e-3",), "method.name: is missing"),
        (
            ("method.name=mezo",),
            "`mezo` compares adapters, which dropout would make noisy: set `adapter.dropout` to 0 "
            "(it is 0.1)",
        ),
        ((*MEZO, "base_dropout=true"), "set `base_dropout` to false (it is true)"),
        (("adapter.factors=a",), "adapter.factors: input should be 'both' or 'b'"),
        (("boost.steps_per_iteration=-1",), "greater than or equal to 0, got -1"),
        (("boost.steps_per_iteraton=5",), "no such key (did you mean `steps_per_iteration`?)"),
        (("boost.merge=wieghts",), "boost.merge: input should be 'stack' or 'weights'"),
        (("boost.shrinkage=0",), "boost.shrinkage: input should be greater than 0, got 0"),
        (("boost.shrinkage=1.5",), "input should be less than or equal to 1, got 1.5"),
        (("boost.layers_per_round=0",), "greater than or equal to 1, got 0"),
        (
            ("boost.plateau.patience=2", "boost.steps_per_iteration=3"),
            "`boost.plateau` and `boost.steps_per_iteration` are both on the command line",
        ),
        (
            ("boost={plateau: {patience: 2}, merge_frequency: 3}",),
            "boost: `plateau` and `merge_frequency` 3 both say when to commit",
        ),
        (
            ("boost.plateau.patience=2", "eval.every=0", "keep=last"),
            "`boost.plateau` needs evaluations: set `eval.every`",
        ),
        (("boost.steps_per_iteration=9", "adapter.rank=0"), "adapter.rank: input should be"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_a_method_or_boosting_cannot_do_is_said_in_words(overrides, problem):
    with pytest.raises(InputError) as caught:
        resolve("instruct", overrides)
    assert problem in caught.value.problem


ES = ("method.name=es", "adapter.dropout=0", "batch_size=4", "optimiser.name=sgd")
ZERO = (*ES, "adapter.init=zero")


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ((*ES, "method.population=5"), "`population` is 5: give an even number"),
        ((*ES, "method.noise.space=fixed"), "`space: fixed` and `sigma` go together"),
        ((*ES, "method.noise.sigma=0.1"), "`space: fixed` and `sigma` go together"),
        (ZERO, "where both members of a pair are the same"),
        ((*ZERO, "method.antithetic=false", "adapter.factors=b"), "B alone does nothing where A"),
        ((*ES, "batch_size=3"), "`es` does not read it: use `method.samples_per_generation`"),
        ((*ES, "engine.name=vllm"), "is a loss, which this process computes"),
        ((*ES, "objective={name: reward, decoding: {seed: 1}}"), "the run's own `seed` draws"),
        ((*ES, "method.name=mezo", "objective.name=reward"), "`mezo` needs a loss"),
        ((*MEZO, "engine.name=ray"), "shares out the populations of `es`, and `mezo` has none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_es_and_rewards_cannot_do_is_said_in_words(overrides, problem):
    with pytest.raises(InputError) as caught:
        resolve("instruct", overrides)
    assert problem in caught.value.problem


def test_a_run_with_fixed_noise_is_read_back():
    written = resolve("instruct", (*ES, "method.noise={space: fixed, sigma: 0.1}"))
    record = written.config.model_dump(mode="json")
    assert from_record(record, {}, "the manifest").config == written.config
    with pytest.raises(InputError, match="does not use `fraction`"):
        resolve("instruct", (*ES, "method.noise={space: fixed, sigma: 0.1, fraction: 0.2}"))


def test_boosting_forces_rank_one_and_says_what_that_does_to_the_scale():
    found = resolve("instruct", ["boost.steps_per_iteration=9", "adapter.rank=4"])
    assert (found.config.adapter.rank, found.config.adapter.effective_scale) == (1, 16)
    assert found.origins["adapter.rank"] == "forced to 1 by boosting, 4 was asked"
    assert (
        "`adapter.rank` is forced to 1 by boosting, 4 was asked [command line]: with alpha 16 "
        "that is scale 16, not 4"
    ) in found.notices
    again = from_record(found.config.model_dump(mode="json"), found.origins, "manifest.json")
    assert again.config == found.config
    assert again.origins["adapter.rank"] == found.origins["adapter.rank"]


def test_rank_one_is_asked_for_in_silence_and_boosting_turned_off_asks_for_nothing():
    found = resolve("instruct", ["boost.steps_per_iteration=9", "adapter.rank=1"])
    assert not any("forced" in notice for notice in found.notices)
    assert found.origins["adapter.rank"] == "command line"
    assert resolve("instruct", ["boost=null", "adapter.rank=4"]).config.adapter.rank == 4


def test_a_method_brings_the_optimiser_that_is_usual_for_it_where_none_is_given(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {task: instruct}\nsteps: 1\nmethod: {name: mezo}\n")
    found = resolve(str(path)).config
    assert (found.method.eps, found.method.directions, found.method.sides) == (1e-3, 1, "two")
    assert (found.optimiser.name, found.optimiser.schedule, found.optimiser.clip) == (
        "sgd",
        "constant",
        None,
    )
    assert resolve(str(path), ["optimiser.lr=1e-6"]).config.optimiser.name == "sgd"
    assert resolve(str(path), ["optimiser.clip=1"]).config.optimiser.clip == 1
