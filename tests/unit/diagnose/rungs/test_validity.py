"""Rung 0: something to compare, ended well, finite, in the same mode, and at one with itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.adapters import adapted, adapter
from tests.support.evidence import Side
from weft.diagnose.finding import Finding, Looked
from weft.diagnose.rungs.validity import idle_adapter, look
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.runs.evidence import Check, TrainStep


def one(**fields: Any) -> Side:
    return Side().forward([[1, 2, 3]], **fields)


def seen(a: Side, b: Side, **about: Any) -> Looked:
    of_b: Evidence = replace(b.evidence, about=about)
    return look(Pair(replace(a.evidence, about={"status": "finished"}), of_b))


def only(found: Looked, nature: str = "factor") -> Finding:
    kept = [each for each in found.findings if each.nature == nature]
    assert len(kept) == 1, [each.words for each in found.findings]
    return kept[0]


def test_what_is_fine_is_said_to_be() -> None:
    found = seen(one(), one(), status="finished")
    assert found == Looked((), ("all values finite: 2 passes",))


def test_a_side_without_passes_steps_and_completions_is_told() -> None:
    assert "B recorded no pass" in seen(one(), Side()).unseen[0]


def test_a_side_that_failed_is_told_with_its_error() -> None:
    found = seen(one(), one(), status="failed", error="KeyError: 'x'")
    assert only(found, "effect").words == "B ended with an error: KeyError: 'x'"


def test_the_first_module_that_is_not_finite_is_named_with_the_limit_of_its_dtype() -> None:
    bad = one(
        dtype="float16", nonfinite="model.layers.2.mlp.down_proj", largest={"x": 61234.0, "y": 3.0}
    )
    factor = only(seen(one(), bad))
    assert (factor.label, factor.place) == ("overflow", "model.layers.2.mlp.down_proj")
    assert (factor.value, factor.other) == (61234.0, 65504.0)
    assert "float16 ends at 65,504" in factor.words


def test_both_not_finite_in_the_same_module_is_no_difference() -> None:
    bad = one(nonfinite="lm_head")
    assert only(seen(bad, bad), "harmless").label == "overflow"


def test_dropout_without_gradients_is_a_mode() -> None:
    factor = only(seen(one(), one(training=True, dropouts=12)))
    assert (factor.label, factor.value) == ("mode", 1)
    assert "dropout is active in passes without gradients in B (12 modules, 1 pass)" in factor.words


def test_training_mode_without_dropout_is_harmless() -> None:
    assert only(seen(one(), one(training=True)), "harmless").label == "mode"


def test_training_in_evaluation_mode_is_a_mode() -> None:
    a = one(phase="train", grad=True, training=True, dropouts=4)
    factor = only(seen(a, one(phase="train", grad=True)))
    assert factor.label == "mode"
    assert factor.fix == "call model.train() in B before them"


def test_self_checks_that_hold_in_both_are_ruled_out() -> None:
    ok = Check(name="repeat", unit="nats", values=(0.0,))
    assert "self-check ok in both: repeat" in seen(one().add(ok), one().add(ok)).equal


@pytest.mark.parametrize(("name", "label"), [("row", "mask"), ("cache", "cache")])
def test_a_self_check_that_fails_points_at_what_to_look_at(name: Any, label: str) -> None:
    bad = Check(name=name, unit="nats", values=(1e-9, 0.5))
    effect = only(seen(one(), one().add(bad)), "effect")
    assert (effect.label, effect.value) == (label, 0.5)


def test_a_repeat_that_fails_is_the_mode_where_something_is_dropped() -> None:
    bad = Check(name="repeat", unit="nats", values=(0.5,))
    dropping = one(training=True, dropouts=1).add(bad)
    assert {f.label for f in seen(one(), dropping).findings if f.nature == "effect"} == {"mode"}
    (factor,) = seen(one(), one().add(bad)).findings
    assert factor.label == "mode" and "no module with dropout is active" in factor.words


def test_a_side_that_does_not_repeat_itself_is_not_told_to_fail_otherwise() -> None:
    noisy = one(dtype="bfloat16").add(Check(name="repeat", unit="nats", values=(1e-3,)))
    noisy.add(Check(name="cache", unit="nats", values=(0.5,)))
    assert [each.place for each in seen(one(), noisy).findings] == ["self-check repeat"]


def trained(split: float, loss: float, *, base_dropout: bool = False) -> Side:
    """A run of one step of two rows, with nats of 6 over 3 tokens: their mean is 2."""
    made = Side(kind="run").forward(
        [[1, 2, 3], [4, 5, 0]], phase="train", grad=True, training=base_dropout,
        labels=[[-100, 2, 3], [-100, 5, -100]], row_nll=[5.0, 1.0],
    )  # fmt: skip
    made.add(TrainStep(step=1, loss=loss, passes=(0,), supervised=3))
    for value in (split / 2, split):
        made.add(Check(name="split", unit="relative", values=(value,)))
    return made


def test_a_run_whose_loss_depends_on_who_shares_a_forward_mixes_rows_or_means() -> None:
    """Rows see each other where its loss is still the mean of its tokens; else it is the mean."""
    rows = only(seen(trained(1e-7, 2.0), trained(0.4, 2.0)), "effect")
    assert (rows.label, rows.value) == ("mask", 0.4)
    assert "in B, a batch in two forwards gives another loss: rows of one forward" in rows.words
    means = only(seen(trained(0.4, 1.75), trained(1e-7, 2.0)), "effect")
    assert means.label == "normaliser" and "in A" in means.words


def test_a_split_that_fails_on_both_sides_or_by_the_dropout_of_the_base_says_nothing() -> None:
    assert not seen(trained(0.4, 2.0), trained(0.4, 2.0)).findings
    unknown = Side(kind="run").forward([[1, 2, 3]], phase="train", grad=True)
    assert not seen(unknown, trained(0.4, 2.0)).findings
    noisy = trained(0.4, 2.0, base_dropout=True)
    assert not [f for f in seen(trained(1e-7, 2.0), noisy).findings if f.nature == "effect"]


def test_an_adapter_that_changes_nothing_is_said_why() -> None:
    idle = {name: lora.but(b=lora.b * 0) for name, lora in adapter().items()}
    assert idle_adapter(adapted(Side(), adapter()).evidence) is None
    assert idle_adapter(adapted(Side(), idle).evidence) == "its factors B are zero"
