"""What an experiment's file may say, how arms are laid over the run, and what is refused."""

from __future__ import annotations

import pytest
import yaml

from weft.core.errors import InputError
from weft.training.experiment_config import read_design, remarks
from weft.training.resolve import from_record

RUN = {
    "data": {"task": "reviews"},
    "adapter": {"rank": 1, "alpha": 16},
    "method": {"name": "mezo", "eps": 1e-3},
    "optimiser": {"lr": 1e-4},
    "batch_size": 8,
    "steps": 3,
    "seed": 5,
}
EXPERIMENT = {
    "run": RUN,
    "seeds": [0, 1],
    "budget": {"steps": 10},
    "arms": {"mezo": None, "boosted every 5": {"boost.steps_per_iteration": 5}},
}


@pytest.fixture
def write(tmp_path):
    """Write a file of an experiment, with changes; None takes a key out."""

    def make(**changes):
        values = {k: v for k, v in (EXPERIMENT | changes).items() if v is not None}
        path = tmp_path / "my.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return str(path)

    return make


def arms(source, *overrides):
    design = read_design(source, overrides)
    return design.arms(dict.fromkeys(design.drafts, 10))


def problem(source, *overrides):
    with pytest.raises(InputError) as caught:
        read_design(source, overrides)
    return caught.value.problem


def test_an_empty_arm_is_the_run_itself_with_the_experiments_seeds_and_length(write):
    found = arms(write())["mezo"]
    assert (found.config.seeds, found.config.steps, found.config.batch_size) == ((0, 1), 10, 8)
    assert found.origins["seeds"] == "experiment" and found.origins["batch_size"] == "file my.yaml"
    assert found.notices == ()  # that seeds and length are the experiment's is no news


@pytest.mark.parametrize(
    "settings",
    [{"boost.steps_per_iteration": 5}, {"boost": {"steps_per_iteration": 5}}],
    ids=["dotted", "nested"],
)
def test_an_arms_overrides_are_dotted_or_nested(write, settings):
    found = arms(write(arms={"a": {}, "b": settings}))["b"]
    assert found.config.boost.steps_per_iteration == 5
    assert found.config.method.eps == 1e-3
    assert found.origins["boost.steps_per_iteration"] == "arm b"


def test_an_arm_of_another_method_drops_what_it_does_not_read(write):
    other = {"method": {"name": "backprop"}, "optimiser": {"name": "adamw", "lr": 1e-3}}
    found = arms(write(arms={"mezo": {}, "backprop": other}))["backprop"]
    assert found.config.method.name == "backprop"
    assert found.config.optimiser.lr == 1e-3
    assert found.notices == ("method.name=backprop in arm `backprop` clears method.eps of my.yaml",)


def test_an_arm_can_leave_out_a_section_of_the_run(write):
    boosted = RUN | {"boost": {"steps_per_iteration": 5}}
    found = arms(write(run=boosted, arms={"boosted": {}, "mezo": {"boost": None}}))
    assert [each.config.boost is None for each in found.values()] == [False, True]


def test_boosting_forces_rank_one_and_says_so(write):
    found = arms(write(run=RUN | {"adapter": {"rank": 8, "alpha": 16}}))["boosted every 5"]
    assert found.config.adapter.rank == 1
    assert "forced to 1 by boosting" in found.notices[0]


def test_the_run_is_a_recipe_or_a_file_beside_the_experiment(write, tmp_path):
    assert arms(write(run="instruct", arms={"a": {}}))["a"].config.batch_size == 16
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(RUN | {"batch_size": 3}))
    found = arms(write(run="base.yaml", arms={"a": {}}))["a"]
    assert found.config.batch_size == 3 and found.origins["batch_size"] == "file base.yaml"


def test_the_stored_text_stands_on_its_own(write, tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(RUN))
    design = read_design(write(run="base.yaml"), ["run.batch_size=2", "seeds=[7]"])
    copy = tmp_path / "elsewhere" / "copy.yaml"
    copy.parent.mkdir()
    copy.write_text(design.text)
    again = arms(str(copy))["mezo"].config
    assert (again.batch_size, again.seeds) == (2, (7,))


def test_the_command_line_overrides_the_experiment_its_run_and_its_arms(write):
    found = arms(
        write(),
        "seeds=[3]",
        "run.batch_size=2",
        "arms.boosted every 5.optimiser.lr=1e-5",
    )
    assert {each.config.batch_size for each in found.values()} == {2}
    assert {each.config.seeds for each in found.values()} == {(3,)}
    assert [each.config.optimiser.lr for each in found.values()] == [1e-4, 1e-5]


def test_an_arm_goes_before_what_the_command_line_says_of_the_run(write):
    found = arms(write(arms={"a": {}, "b": {"batch_size": 4}}), "run.batch_size=2")
    assert [each.config.batch_size for each in found.values()] == [2, 4]


def test_a_budget_on_the_command_line_replaces_the_one_of_the_file(write):
    design = read_design(write(), ["budget.forwards=40"])
    assert design.config.budget.record() == {"forwards": 40}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [1, 1]}, "`seeds` [1, 1] names one twice"),
        ({"seeds": []}, "seeds: tuple should have at least 1 item"),
        ({"seeds": [-1]}, "seeds: input should be greater than or equal to 0"),
        ({"seeds": None}, "seeds: field required"),
        ({"budget": {}}, "budget: give `budget.forwards` or `budget.steps`"),
        ({"budget": {"steps": 1, "forwards": 2}}, "budget: give `budget.forwards` or"),
        ({"budget": {"steps": 0}}, "budget.steps: input should be greater than or equal to 1"),
        ({"budget": {"step": 5}}, "budget.step: no such key (did you mean `steps`?)"),
        ({"arms": {}}, "arms: dictionary should have at least 1 item"),
        ({"arms": {"a": 3}}, "arms: an arm holds keys and values, not a 3"),
        ({"arms": {"base": {}}}, "an arm cannot be called `base`"),
        ({"reference": "mezzo"}, "'mezzo' is no arm"),
        ({"x": "time"}, "x: input should be 'forwards' or 'steps'"),
        ({"armz": {}}, "armz: no such key (did you mean `arms`?)"),
        ({"optimiser": {}}, "optimiser: no such key (a run has it: `run.optimiser`"),
        ({"steps": 5}, "steps: no such key (an experiment has `budget`)"),
        ({"arms": {"a": {"seed": 1}}}, "seed: this is the experiment's: set `seeds` there"),
        ({"arms": {"a": {"steps": 1}}}, "steps: this is the experiment's: set `budget` there"),
        ({"arms": {"a": {"adapter.rnk": 1}}}, "adapter.rnk: no such key (did you mean `rank`?)"),
        ({"arms": {"a": {"optimiser.lr": [1, 2]}}}, "an arm has one learning rate"),
        ({"arms": {"a": {"method.eps": 0}}}, "method.eps: input should be greater than 0"),
    ],
)
def test_a_slip_is_a_problem_with_its_key(write, changes, said):
    assert said in problem(write(**changes))


def test_all_problems_of_all_arms_are_reported_at_once_and_common_ones_once(write):
    said = problem(
        write(
            run=RUN | {"batch_size": 0},
            arms={"a": {"adapter.rnk": 1}, "b": {"method.eps": 0}, "c": {}},
        )
    )
    assert "has 3 problems" in said
    assert "run: batch_size: input should be greater" in said and said.count("batch_size") == 1
    assert "arm a: adapter.rnk: no such key" in said and "[arm a]" in said
    assert "arm b: method.eps: input should be greater than 0, got 0 [arm b]" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("arms.mezzo.batch_size=2", "names no arm"),
        ("run.batch_sise=2", "run: batch_sise: no such key (did you mean `batch_size`?)"),
        ("steps=5", "steps: no such key (an experiment has `budget`)"),
        ("arms.mezo.seed=3", "arm mezo: seed: this is the experiment's"),
        ("seeds", "is not key=value"),
    ],
)
def test_a_slip_on_the_command_line_is_named(write, override, said):
    assert said in problem(write(), override)


def test_a_file_that_is_not_there_or_no_experiment_is_said(write, tmp_path):
    assert "there is no experiment and no file" in problem("nowhere.yaml")
    assert "is a recipe of one run, not an experiment" in problem("instruct")
    assert "no recipe and no file 'nowhere'" in problem(write(run="nowhere"))
    (tmp_path / "broken.yaml").write_text("run: [")
    assert "is not YAML" in problem(str(tmp_path / "broken.yaml"))


def run(**changes):
    values = {**RUN, **changes}
    del values["seed"]
    return from_record(values | {"seeds": [0, 1]}, {}, "here").config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"boost": {"steps_per_iteration": 1}}, None),
        ({"batch_size": 16}, "16 rows a step, not 8"),
        ({"adapter": {"rank": 8, "alpha": 16}}, "moves 64 times slower a direction"),
        ({"optimiser": {"lr": 1e-3}}, "moves 10 times as fast a direction"),
        ({"adapter": {"rank": 4, "scale": 16}}, None),
        ({"optimiser": {"name": "adamw", "lr": 1e-3}}, None),  # its steps have no such speed
        ({"dtype": "bfloat16"}, "another base: weft/tiny (bfloat16)"),
        ({"data": {"task": "instruct"}}, "other data"),
        ({"objective": {"name": "choice"}}, "another objective"),
        ({"keep": "last"}, "keeps the last adapter, the reference the best"),
        ({"eval": {"every": 1}}, "keeps the best of 3 evaluations, the reference of 0"),
    ],
)
def test_what_makes_arms_hard_to_compare_is_said(changes, said):
    found = remarks(run(**changes), run())
    assert found == () if said is None else len(found) == 1 and said in found[0]
