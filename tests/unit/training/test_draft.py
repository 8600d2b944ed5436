"""Layers of settings: the upper one counts, what it rules out goes, and both are said."""

from __future__ import annotations

import pytest

from weft.core.errors import InputError
from weft.training.draft import COMMAND_LINE, Draft, Layer, pairs
from weft.training.resolve import resolve

ARM = Layer("arm a", "in arm `a`")


def draft(**values):
    return Draft.of(values, "file my.yaml")


def test_the_upper_layer_counts_and_is_the_origin():
    made = draft(adapter={"rank": 8, "alpha": 16}, steps=5)
    made.lay([("adapter.rank", 4)], ARM)
    made.lay([("steps", 7)], COMMAND_LINE)
    assert made.values == {"adapter": {"rank": 4, "alpha": 16}, "steps": 7}
    assert made.origins == {
        "adapter.rank": "arm a",
        "adapter.alpha": "file my.yaml",
        "steps": "command line",
    }
    assert made.notices == []


def test_a_section_that_is_null_can_be_filled():
    made = draft(boost=None)
    made.lay([("boost.steps_per_iteration", 5)], ARM)
    assert made.values == {"boost": {"steps_per_iteration": 5}}
    assert made.origins == {"boost.steps_per_iteration": "arm a"}


def test_a_setting_of_a_section_rules_out_what_the_section_does():
    made = draft(boost={"steps_per_iteration": 5})
    made.lay([("boost.plateau.patience", 2)], ARM)
    assert made.values == {"boost": {"plateau": {"patience": 2}}}
    assert made.notices == [
        "boost.plateau.patience=2 in arm `a` clears boost.steps_per_iteration of my.yaml"
    ]


def test_a_count_of_zero_is_never_and_goes_with_anything():
    made = draft(boost={"plateau": {"patience": 3}, "merge_frequency": 0})
    made.lay([("boost.steps_per_iteration", 0), ("boost.plateau.patience", 2)], ARM)
    assert made.values["boost"]["plateau"] == {"patience": 2}
    assert made.notices == []


def test_what_makes_no_sense_with_a_setting_goes_with_a_notice():
    made = draft(boost={"plateau": {"patience": 3, "min_delta": 0.1}})
    made.lay([("boost.steps_per_iteration", 5)], ARM)
    assert made.values == {"boost": {"steps_per_iteration": 5}}
    assert made.origins == {"boost.steps_per_iteration": "arm a"}
    assert made.notices == [
        "boost.steps_per_iteration=5 in arm `a` clears boost.plateau of my.yaml"
    ]


def test_two_that_make_no_sense_together_in_one_layer_are_an_error():
    made = draft()
    settings = {"boost": {"plateau": {"patience": 3}, "steps_per_iteration": 5}}
    made.lay([("boost.plateau", {"patience": 3})], ARM)
    with pytest.raises(InputError, match="both in arm `a`"):
        made.lay([("boost.steps_per_iteration", 5)], ARM)
    assert [key for key, _ in pairs(settings)] == [
        "boost.plateau.patience",
        "boost.steps_per_iteration",
    ]


@pytest.mark.parametrize("layer", [ARM, COMMAND_LINE])
def test_another_method_clears_what_it_does_not_read(layer):
    made = draft(method={"name": "mezo", "eps": 1e-3, "directions": 4}, optimiser={"lr": 1e-4})
    made.lay([("method.name", "backprop")], layer)
    assert made.values == {"method": {"name": "backprop"}, "optimiser": {"lr": 1e-4}}
    assert [notice.split("clears ")[1] for notice in made.notices] == [
        "method.directions of my.yaml",
        "method.eps of my.yaml",
    ]


def test_another_optimiser_keeps_what_both_read():
    made = draft(optimiser={"name": "sgd", "lr": 1e-4, "momentum": 0.9})
    made.lay([("optimiser.name", "adamw")], ARM)
    assert made.values == {"optimiser": {"name": "adamw", "lr": 1e-4}}
    assert "clears optimiser.momentum" in made.notices[0]


def test_a_setting_of_the_same_layer_is_not_cleared_but_refused():
    made = draft(method={"name": "mezo"})
    made.lay([("method.eps", 1e-2), ("method.name", "backprop")], ARM)
    assert made.values == {"method": {"eps": 1e-2, "name": "backprop"}}  # an error when checked


def test_noise_of_a_fixed_size_clears_that_of_a_fraction():
    made = draft(method={"name": "es", "noise": {"fraction": 0.2}})
    made.lay([("method.noise.space", "fixed"), ("method.noise.sigma", 1e-3)], ARM)
    assert made.values["method"]["noise"] == {"space": "fixed", "sigma": 1e-3}
    assert "clears method.noise.fraction of my.yaml" in made.notices[0]


def test_a_slip_stays_to_be_reported():
    made = draft(method={"name": "mezo", "epps": 1e-3})
    made.lay([("method.name", "backprop")], ARM)
    assert made.values["method"] == {"name": "backprop", "epps": 1e-3}


def test_a_method_on_the_command_line_clears_that_of_a_file(tmp_path):
    path = tmp_path / "mezo.yaml"
    path.write_text("data: {task: instruct}\nsteps: 1\nmethod: {name: mezo, eps: 1e-2}\n")
    found = resolve(str(path), ["method.name=backprop"])
    assert found.config.method.name == "backprop"
    assert found.notices == (
        "method.name=backprop on the command line clears method.eps of mezo.yaml",
    )


def test_a_method_whose_rates_have_another_unit_takes_none_of_the_recipe():
    resolved = resolve("instruct", ["method.name=es", "adapter.dropout=0"])
    assert resolved.config.optimiser.lr == 0.5
    assert any("clears optimiser.lr" in notice for notice in resolved.notices)
    kept = resolve("instruct", ["method.name=es", "adapter.dropout=0", "optimiser.lr=2"])
    assert kept.config.optimiser.lr == 2
