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
