"""Rung 11: the first step that differs and in what, events between steps, and what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.evidence import Side, pair
from weft.diagnose.finding import Finding, Looked
from weft.diagnose.rungs.first_step import look as first_step
from weft.diagnose.rungs.trajectory import look
from weft.diagnose.sides.evidence import Pair
from weft.runs.evidence import AdapterModule, Happened, Seeded, Snapshot, TrainStep

STEPS = 12
LOSSES = tuple(3 - 0.1 * k for k in range(STEPS))


def side(
    *,
    losses: Sequence[float] = LOSSES,
    batches: str = "abcdabcdabcd",
    lr: Any = lambda k: 1e-3,
    base: Any = lambda k: "frozen",
    **fields: Any,
) -> Side:
    made = Side()
    for k, loss in enumerate(losses, start=1):
        made.add(
            TrainStep(
                step=k,
                loss=loss,
                batch=batches[k - 1],
                rows=(f"row {batches[k - 1]}",),
                lr=(lr(k),),
                base=base(k),
                **{key: value(k) for key, value in fields.items()},
            )
        )
    return made


def happened(made: Side, what: str, *steps: int) -> Side:
    for step in steps:
        made.add(Happened(what=what, step=step))
    return made


def found(looked: Looked, label: str) -> Finding:
    return next(each for each in looked.findings if each.label == label)


def outcome(looked: Looked, name: str) -> Any:
    return next(each for each in looked.outcome if each.name == name)


def test_equal_courses_are_told() -> None:
    looked = look(pair(side(), side()))
    assert not looked.findings and outcome(looked, "loss").apart == "same"
    told = " ".join(looked.equal)
    assert "batches equal: 12 of 12 steps" in told and "the base stays frozen in both" in told
    assert looked.curves["steps"]["a"] == list(LOSSES)


def test_the_same_rows_in_another_order_are_the_order_from_its_first_step() -> None:
    a = side().add(Seeded(library="python", seed=1))
    cause = found(look(pair(a, side(batches="abdcabcdabcd"))), "order")
    assert (cause.nature, cause.step) == ("factor", 3)
    assert "the same rows in another order" in cause.words
    assert "seeds: python 1 in A, none in B" in cause.words


def test_other_rows_are_data_and_an_effect_of_what_rung_2_says() -> None:
    cause = found(look(pair(side(), side(batches="wxyzwxyzwxyz"))), "data")
    assert cause.nature == "effect" and "0% of the rows" in cause.words


def test_batches_of_another_size_are_an_effect_of_the_setting() -> None:
    a, b = side(), side(batches="efghefghefgh")
    b.events = [e.model_copy(update={"rows": ("row a", "row b")}) for e in b.events]
    assert found(look(pair(a, b)), "settings").nature == "effect"


def test_merges_at_other_steps_are_the_schedule_with_the_first_of_them() -> None:
    a = happened(side(), "merge", 3, 6, 9).settings(boost__steps_per_iteration=3)
    b = happened(side(), "merge", 4, 8)
    cause = found(look(pair(a, b)), "schedule")
    assert (cause.nature, cause.step) == ("factor", 3)
    assert "after step 3, 6, 9 (every 3) in A, after step 4, 8 (every 4) in B" in cause.words
    assert "an epoch of B is 4 steps" in cause.words and "an epoch of A" not in cause.words
    assert "A is set to boost.steps_per_iteration 3" in cause.words


def test_a_merge_after_the_last_step_is_no_schedule() -> None:
    assert not look(pair(happened(side(), "merge", STEPS), side())).findings


def test_a_reset_on_one_side_is_the_schedule() -> None:
    cause = found(look(pair(side(), happened(side(), "reset", 5))), "schedule")
    assert "resets: never in A, after step 5 in B" in cause.words


def test_a_base_that_moves_without_a_merge_is_not_frozen() -> None:
    cause = found(look(pair(side(), side(base=str))), "trainable")
    assert (cause.nature, cause.step) == ("factor", 2)
    assert "the base of B moves from step 2 on" in cause.words


def test_a_base_that_moves_with_its_merges_is_frozen_in_between() -> None:
    both = [happened(side(base=lambda k: str(k // 4)), "merge", 4, 8) for _ in range(2)]
    assert not look(pair(*both)).findings


def test_what_rung_4_counts_as_trainable_is_left_to_it() -> None:
    def counted(made: Side, base: int) -> Side:
        return made.add(Snapshot(model="model-0", when="use", style="peft", modules={},
                                 trainable={"adapter": 8, "base": base}))  # fmt: skip

    looked = look(pair(counted(side(), 0), counted(side(base=str), 99)))
    assert found(looked, "trainable").nature == "effect"


def test_a_constant_ratio_of_rates_is_the_rate_and_a_changing_one_the_schedule() -> None:
    rate = found(look(pair(side(), side(lr=lambda k: 2e-3))), "optimiser")
    assert rate.step == 1 and "2 times throughout" in rate.words
    decay = found(look(pair(side(), side(lr=lambda k: 1e-3 * (1 - (k > 4) * k / 20)))), "schedule")
    assert decay.step == 5


def test_a_rate_that_a_setting_explains_is_left_to_rung_1() -> None:
    a, b = side().settings(optimiser__lr=1e-3), side(lr=lambda k: 2e-3).settings(optimiser__lr=2e-3)
    assert found(look(pair(a, b)), "optimiser").nature == "effect"


def test_equal_gradients_and_another_update_are_the_optimiser() -> None:
    a = side(grad_norm=lambda k: 1.0, update_norm=lambda k: 1e-2)
    b = side(grad_norm=lambda k: 1.0, update_norm=lambda k: 1e-2 if k < 3 else 2e-2)
    cause = found(look(pair(a, b)), "optimiser")
    assert (cause.nature, cause.step) == ("factor", 3)


def test_rounding_that_grows_step_by_step_is_noise() -> None:
    losses = [loss * (1 + 1e-7 * 2**k) for k, loss in enumerate(LOSSES)]
    assert outcome(look(pair(side(), side(losses=losses))), "loss").apart == "same"


def test_losses_off_by_one_number_with_equal_gradients_are_one_objective() -> None:
    a = side(grad_norm=lambda k: 1.0 + k)
    b = side(losses=[loss / 2 for loss in LOSSES], grad_norm=lambda k: 1.0 + k)
    looked = look(pair(a, b))
    assert not looked.findings and outcome(looked, "loss").apart == "same"
    (harmless,) = first_step(pair(a, b)).findings
    assert harmless.nature == "harmless" and "0.5 times" in harmless.words
    uneven = side(losses=[loss / 2 for loss in LOSSES], grad_norm=lambda k: 1.0 + k * (k != 7))
    assert outcome(look(pair(a, uneven)), "loss").apart == "different"


def test_a_jump_is_none_and_is_told_with_its_step() -> None:
    losses = [loss * (1 + 0.01 * (k >= 5)) for k, loss in enumerate(LOSSES)]
    looked = look(pair(side(), side(losses=losses)))
    effect = found(looked, "unknown")
    assert (effect.nature, effect.step) == ("effect", 6)
    assert outcome(looked, "loss").apart == "different"
    assert 1 in outcome(looked, "loss").rungs and 9 not in outcome(looked, "loss").rungs


def test_a_loss_that_becomes_nan_is_a_difference() -> None:
    looked = look(pair(side(), side(losses=[*LOSSES[:-1], float("nan")])))
    assert outcome(looked, "loss").apart == "different"


def test_runs_of_other_lengths_part_after_the_shorter() -> None:
    cause = found(look(pair(side(), side(losses=LOSSES[:8]))), "schedule")
    assert (cause.step, cause.value, cause.other) == (9, 12.0, 8.0)


def test_training_that_goes_on_is_an_outcome_unless_the_other_side_was_cut_short() -> None:
    longer, shorter = side().evidence, side(losses=LOSSES[:8]).evidence
    for two in (Pair(longer, shorter), Pair(shorter, longer)):
        assert outcome(look(two), "steps").apart == "different"
    cut = replace(shorter, about={"status": "interrupted"})
    assert [each.name for each in look(Pair(longer, cut)).outcome] == ["loss"]


def test_merges_that_begin_anew_are_one_cause() -> None:
    a = happened(happened(side(), "merge", 4, 8), "reset", 4, 8)
    b = happened(happened(side(), "merge", 6), "reset", 6)
    (cause,) = (f for f in look(pair(a, b)).findings if f.nature == "factor")
    assert (cause.label, cause.step) == ("schedule", 4)
    assert "merges and resets: after step 4, 8" in cause.words


def test_a_base_that_moves_with_its_resets_was_merged_into() -> None:
    a = happened(side(base=lambda k: str((k - 1) // 4)), "reset", 4, 8)
    labels = [f.label for f in look(pair(a, happened(side(), "reset", 6))).findings]
    assert labels == ["schedule"]


def trained(a: np.ndarray, b: np.ndarray) -> Side:
    module = AdapterModule(rank=2, shape=(6, 5), scale=2.0, norm_a=1.0, norm_b=1.0,
                           norm_update=1.0, digest_a="", digest_b="", a="a", b="b")  # fmt: skip
    made = side().add(
        Snapshot(model="model-0", when="end", step=STEPS, style="peft", modules={"q": module})
    )
    made.arrays |= {"a": a, "b": b}
    return made


def test_trained_adapters_are_compared_by_what_they_add_whatever_their_factors() -> None:
    drawn = np.random.default_rng(0)
    a, b = drawn.standard_normal((2, 5)), drawn.standard_normal((6, 2))
    gauge = drawn.standard_normal((2, 2))
    turned = trained(np.linalg.inv(gauge) @ a, b @ gauge)
    assert outcome(look(pair(trained(a, b), turned)), "adapter").apart == "same"
    other = look(pair(trained(a, b), trained(a, 1.5 * b)))
    assert outcome(other, "adapter").value == pytest.approx(0.5)


def test_a_trained_adapter_that_is_not_finite_on_one_side_differs() -> None:
    drawn = np.random.default_rng(0)
    a, b = drawn.standard_normal((2, 5)), drawn.standard_normal((6, 2))
    broken = trained(np.full_like(a, np.nan), b)
    snapshot = broken.events[-1]
    module = snapshot.modules["q"].model_copy(update={"norm_update": math.nan})
    broken.events[-1] = snapshot.model_copy(update={"modules": {"q": module}})
    made = outcome(look(pair(trained(a, b), broken)), "adapter")
    assert made.apart == "different"
    assert made.words.startswith("trained updates are not finite at 1 of 1 module")
    assert all(each.name != "adapter" for each in look(pair(broken, broken)).outcome)


def test_an_adapter_that_one_side_merged_at_the_end_is_compared_before_that() -> None:
    drawn = np.random.default_rng(0)
    a, b = drawn.standard_normal((2, 5)), drawn.standard_normal((6, 2))
    merged = trained(a, b)
    last = merged.events[-1].model_copy(update={"when": "step"})
    empty = last.model_copy(update={"when": "end", "modules": {}})
    merged.events[-1:] = [last, Happened(what="merge", step=STEPS), empty]
    assert outcome(look(pair(trained(a, b), merged)), "adapter").apart == "same"


def test_without_steps_it_says_on_which_side() -> None:
    assert "no training step in A" in look(pair(Side(), side())).unseen[0]
