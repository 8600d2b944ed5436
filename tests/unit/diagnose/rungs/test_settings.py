"""Rung 1: settings that matter, those that only round, those that only name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.adapters import adapted, adapter
from tests.support.evidence import Side, pair
from weft.diagnose.finding import Finding, Looked
from weft.diagnose.rungs.keys import meaning
from weft.diagnose.rungs.settings import look
from weft.runs.evidence import Settings, TrainStep

CONFIG: dict[str, Any] = {
    "base": "weft/tiny",
    "adapter.rank": 8,
    "adapter.alpha": 16.0,
    "adapter.scale": 2.0,
    "adapter.rslora": False,
    "adapter.targets": ["q_proj"],
    "optimiser.name": "adamw",
    "optimiser.lr": 1e-3,
    "optimiser.momentum": 0.0,
    "seed": 0,
    "data.task": "tables",
    "name": "one",
}


def config(**changes: Any) -> Side:
    values = CONFIG | {key.replace("__", "."): value for key, value in changes.items()}
    return Side(kind="config").add(Settings(values=values))


def seen(**changes: Any) -> Looked:
    return look(pair(config(), config(**changes)))


def only(found: Looked) -> Finding:
    factors = [each for each in found.findings if each.nature == "factor"]
    assert len(factors) == 1, [each.words for each in factors]
    return factors[0]


def test_equal_settings_are_counted() -> None:
    assert seen() == Looked((), (f"settings equal: {len(CONFIG)} of {len(CONFIG)}",))


@pytest.mark.parametrize(
    ("key", "value", "label"),
    [
        ("base", "other", "base"),
        ("optimiser__lr", 1e-2, "optimiser"),
        ("seed", 1, "seed"),
        ("data__task", "reviews", "data"),
        ("data__max_length", 32, "truncation"),
        ("data__chat", True, "template"),
        ("adapter__targets", ["q_proj", "v_proj"], "attach-partial"),
        ("boost__steps_per_iteration", 5, "schedule"),
        ("generation__temperature", 0.7, "sampler"),
        ("generation__max_tokens", 20, "stop"),
        ("base_dropout", True, "settings"),
        ("somebodys_own_key", 3, "settings"),
    ],
)
def test_of_two_configurations_each_setting_that_acts_is_a_cause(key, value, label) -> None:
    factor = only(seen(**{key: value}))
    assert (factor.rung, factor.label, factor.place) == (1, label, key.replace("__", "."))


def test_both_values_their_ratio_and_where_they_came_from_are_told() -> None:
    a = Side(kind="config").add(
        Settings(values={"optimiser.lr": 1e-3}, origins={"optimiser.lr": "command line"})
    )
    b = Side(kind="config").add(
        Settings(values={"optimiser.lr": 1e-4}, origins={"optimiser.lr": "default"})
    )
    factor = only(look(pair(a, b)))
    assert factor.words == (
        "optimiser.lr is 0.001 in A (command line), 0.0001 in B (default): 10 times less"
    )


def test_names_and_kernels_are_harmless() -> None:
    found = seen(name="two", environment__threads=4, micro_batch_size=2)
    assert [each.nature for each in found.findings] == ["harmless", "harmless"]


def test_alpha_and_rank_that_give_the_same_scale_leave_the_rank() -> None:
    found = seen(adapter__rank=16, adapter__alpha=32.0)
    assert only(found).label == "rank"
    assert [each.place for each in found.findings if each.nature == "harmless"] == ["adapter.scale"]


def test_another_scale_is_told_with_its_ratio() -> None:
    factor = only(seen(adapter__alpha=8.0, adapter__scale=1.0))
    assert (factor.label, factor.place, factor.value) == ("scale", "adapter.scale", 0.5)


def test_a_scale_that_follows_from_the_rank_is_its_effect() -> None:
    assert only(seen(adapter__rank=4, adapter__scale=4.0)).label == "rank"


def test_another_optimiser_stands_for_its_own_settings() -> None:
    factor = only(seen(optimiser__name="sgd", optimiser__momentum=0.9))
    assert factor.place == "optimiser.name"


ES = {
    "method__name": "es",
    "method__population": 16,
    "objective__name": "reward",
    "objective__timeout": 5.0,
    "optimiser__name": "sgd",
    "optimiser__lr": 1.0,
}


def test_another_method_is_one_cause_and_its_settings_are_told_with_it() -> None:
    a = config(method__name="backprop", objective__name="tokens")
    factor = only(look(pair(a, config(**ES))))
    assert (factor.label, factor.place) == ("settings", "method.name")
    assert factor.words.startswith(
        "method.name is backprop in A, es in B; with it objective.name: "
    )
    assert factor.words.endswith("; and 1 more")


def test_settings_of_one_method_are_causes_each() -> None:
    found = look(pair(config(**ES), config(**ES | {"method__population": 8, "optimiser__lr": 2.0})))
    assert [each.place for each in found.findings] == ["method.population", "optimiser.lr"]


def test_what_only_one_side_has_is_one_cause() -> None:
    factor = only(seen(boost__merge="stack", boost__shrinkage=1.0, boost__steps_per_iteration=5))
    assert (factor.label, factor.place) == ("schedule", "boost")
    assert factor.words.startswith("boost is set in B and not in A: merge stack, shrinkage 1,")
    assert factor.fix == "set boost alike in both"


def test_two_settings_of_what_both_have_are_two_causes() -> None:
    a = config(boost__merge="stack", boost__shrinkage=1.0)
    b = config(boost__merge="weights", boost__shrinkage=0.5)
    found = look(pair(a, b))
    assert [each.place for each in found.findings] == ["boost.merge", "boost.shrinkage"]


def test_what_decides_most_is_told_first() -> None:
    found = seen(base="other", data__task="reviews", adapter__alpha=8.0, adapter__scale=1.0, seed=1)
    assert [each.place for each in found.findings] == ["base", "data.task", "adapter.scale", "seed"]


def test_none_is_told_as_not_set() -> None:
    assert only(seen(start="runs/one")).words == "start is not set in A, runs/one in B"


def test_what_was_recorded_is_left_to_the_rung_that_looks_at_it() -> None:
    def side(alpha: float) -> Side:
        return adapted(Side().settings(adapter__alpha=alpha, adapter__scale=alpha / 8), adapter())

    assert look(pair(side(16.0), side(8.0))).findings == ()


def test_other_data_with_equal_batches_is_harmless() -> None:
    def side(path: str) -> Side:
        return Side().settings(data__path=path).add(TrainStep(step=1, batch="x"))

    found = look(pair(side("a.jsonl"), side("b.jsonl")))
    assert [each.nature for each in found.findings] == ["harmless"]


def test_a_key_that_one_recording_has_alone_says_nothing() -> None:
    assert look(pair(Side().settings(seed=0, x=1), Side().settings(seed=0))).findings == ()


def test_sides_without_settings_are_told() -> None:
    assert look(pair(Side(), Side().settings(seed=0))).unseen == (
        "settings: none were recorded in A",
    )


def test_a_key_means_what_begins_with_it_only_at_a_part() -> None:
    assert meaning("base").label == "base"
    assert meaning("base_dropout").label == "settings"
    assert meaning("data.chat_template").label == "template"
    assert meaning("optimiser.warmup_ratio").label == "schedule"


@pytest.mark.parametrize(("mine", "its"), [(0.1, 0.0), (0.0, 0.1), (-1.0, 1.0)])
def test_numbers_without_a_ratio_are_told_without_one(mine: float, its: float) -> None:
    look_at = config(optimiser__momentum=mine), config(optimiser__momentum=its)
    (found,) = look(pair(*look_at)).findings
    assert found.place == "optimiser.momentum" and "times" not in found.words
