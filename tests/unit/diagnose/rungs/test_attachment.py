"""Rung 4: which modules have an adapter, of what rank, from what start, and what is trained."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.adapters import NAMES, Lora, adapted, adapter, base, draw, weighted
from tests.support.evidence import Side, pair
from weft.diagnose.finding import Finding, Looked
from weft.diagnose.rungs.attachment import look
from weft.diagnose.rungs.outset import held
from weft.runs.evidence import Happened, TrainStep

Modules = dict[str, Lora]
HALF = [name for name in NAMES if ".2." in name or ".1." in name]


def side(modules: Modules | None, weights: dict | None = None, **fields) -> Side:
    made = weighted(Side(), base() if weights is None else weights)
    return made if modules is None else adapted(made, modules, **fields)


def seen(a: Side, b: Side) -> Looked:
    return look(pair(a, b))


def only(found: Looked) -> Finding:
    factors = [each for each in found.findings if each.nature == "factor"]
    assert len(factors) == 1, factors
    return factors[0]


def fresh(modules: Modules) -> Modules:
    return {name: lora.but(b=np.zeros_like(lora.b)) for name, lora in modules.items()}


def training(modules: Modules, trainable: int = 10, **fields) -> Side:
    return side(fresh(modules), trainable=trainable, **fields).add(TrainStep(step=1))


def merged(modules: Modules, names: list[str] | None = None) -> dict[str, np.ndarray]:
    return {
        name: weight + (modules[name].delta if name in (names or modules) else 0)
        for name, weight in base().items()
    }


def test_equal_adapters_are_ruled_out_with_modules_and_rank() -> None:
    found = seen(side(adapter(), trainable=9), side(adapter(), trainable=9))
    assert found.findings == ()
    assert found.equal == ("adapters at the same 9 modules, rank 4",)


def test_an_adapter_on_one_side_only_is_not_attached_on_the_other() -> None:
    factor = only(seen(side(adapter()), side(None)))
    assert (factor.label, factor.place) == ("attach", "all 9 adapted modules")
    assert "its base weights alone" in factor.words


def test_an_adapter_that_was_loaded_and_never_used_is_told_with_its_file() -> None:
    facts = {"by": "peft", "modules": 9, "unexpected": 18}
    load = Happened(what="load", place="out/adapter", facts=facts, where="run.py:7")
    factor = only(seen(side(adapter()), side(None).add(load)))
    assert factor.label == "attach"
    assert "it loaded an adapter of 9 modules (out/adapter, run.py:7)" in factor.words
    assert "18 keys of the file had no place" in factor.words
    assert factor.where == "run.py:7"


def test_reading_the_base_is_not_reading_an_adapter() -> None:
    load = Happened(what="load", place="base", facts={"class": "LlamaForCausalLM", "modules": 85})
    factor = only(seen(side(adapter()), side(None).add(load)))
    assert "its base weights alone" in factor.words


def test_an_adapter_that_was_unloaded_is_told_with_the_line() -> None:
    gone = Happened(what="unload", facts={"by": "peft"}, where="run.py:9")
    factor = only(seen(side(adapter()), side(None).add(gone)))
    assert "unloaded it (run.py:9)" in factor.words


def test_a_merged_and_unloaded_adapter_computes_the_same() -> None:
    modules = adapter()
    found = seen(side(modules), side(None, merged(modules)))
    assert [each.nature for each in found.findings if each.label == "attach"] == ["harmless"]


def test_half_the_modules_merged_leaves_the_others_unattached() -> None:
    modules = adapter()
    factor = only(seen(side(modules), side(None, merged(modules, HALF))))
    assert (factor.label, factor.value) == ("attach-partial", 3)
    assert factor.place == "model.layers.0 (3 of 9 adapted modules)"


def test_modules_without_an_adapter_on_one_side_are_counted() -> None:
    part = {name: lora for name, lora in adapter().items() if name not in HALF}
    factor = only(seen(side(adapter()), side(part)))
    assert (factor.label, factor.value) == ("attach-partial", 6)
    assert "A has an adapter at 6 modules where B has none" in factor.words


def test_an_update_that_is_zero_at_some_modules_is_not_attached_there() -> None:
    part = adapter()
    part |= {name: part[name].but(b=np.zeros_like(part[name].b)) for name in HALF}
    factor = only(seen(side(adapter()), side(part)))
    assert factor.label == "attach-partial"
    assert factor.place == "6 of 9 adapted modules (layers 1, 2)"
    assert "never read or never trained" in factor.words


def test_another_rank_is_told_with_what_was_asked_for() -> None:
    small = {name: draw(name, rank=1) for name in NAMES}
    factor = only(seen(side(adapter(rank=8)), side(small, declared={"r": 8})))
    assert (factor.label, factor.value, factor.other) == ("rank", 1, 8)
    assert "B was asked for 8" in factor.words


def test_factors_of_one_shape_can_hide_another_rank() -> None:
    def but_first(lora: Lora) -> Lora:
        b = lora.b.copy()
        b[:, 1:] = 0
        return lora.but(b=b)

    low = {name: but_first(lora) for name, lora in adapter().items()}
    factor = only(seen(side(adapter()), side(low)))
    assert (factor.label, factor.value, factor.other) == ("rank", 1, 4)


def test_a_padded_rank_of_the_same_product_is_no_other_rank() -> None:
    padded = {
        name: lora.but(
            a=np.concatenate([lora.a, np.zeros_like(lora.a)]),
            b=np.concatenate([lora.b, np.zeros_like(lora.b)], axis=1),
        )
        for name, lora in adapter().items()
    }
    assert not [each for each in seen(side(adapter()), side(padded)).findings if
                each.nature == "factor"]  # fmt: skip


@pytest.mark.parametrize("times", [20, 4])
def test_a_weaker_start_is_told_with_its_factor(times: float) -> None:
    weak = {name: lora.but(a=lora.a / times) for name, lora in adapter(seed=1).items()}
    factor = only(seen(training(adapter()), training(weak)))
    assert factor.label == "init"
    assert factor.value == pytest.approx(1 / times, rel=0.05)
    assert "times smaller in B" in factor.words


def test_another_seed_is_no_other_start() -> None:
    big = {"size": 0.05}
    a = {name: draw(name, rank=8, seed=0, **big) for name in NAMES}
    b = {name: draw(name, rank=8, seed=1, **big) for name in NAMES}
    found = seen(training(a), training(b))
    assert [each for each in found.findings if each.label == "init"] == []


def test_zero_trainable_parameters_are_normal_in_evaluation() -> None:
    found = seen(side(adapter(), trainable=100), side(adapter(), trainable=0))
    assert [each.nature for each in found.findings] == ["harmless"]
    assert "0 trainable parameters in B: normal where nothing is trained" in found.findings[0].words
    assert "attached at all 9 adapted modules" in found.findings[0].words


def test_zero_trainable_parameters_are_a_cause_in_training() -> None:
    factor = only(seen(training(adapter()), training(adapter(), trainable=0)))
    assert (factor.label, factor.value, factor.other) == ("trainable", 0, 10)
    assert factor.step == 1


def test_an_adapter_that_was_to_be_trained_and_is_frozen_takes_no_step() -> None:
    b = side(fresh(adapter()), trainable=0)
    b.forward([[1, 2]], grad=True, training=True, phase="score")
    factor = only(seen(training(adapter()), b))
    assert factor.label == "trainable"
    assert "B takes no training step" in factor.words


def test_modules_that_are_frozen_are_named() -> None:
    part = {name: lora.but(trainable=".0." not in name) for name, lora in adapter().items()}
    factor = only(seen(training(adapter()), training(part, trainable=6)))
    assert (factor.label, factor.place) == ("trainable", "model.layers.0 (3 of 9 adapted modules)")


def test_dropout_is_a_cause_in_training_only() -> None:
    dropped = {name: lora.but(dropout=0.1) for name, lora in adapter().items()}
    assert only(seen(training(adapter()), training(dropped))).label == "settings"
    found = seen(side(adapter(), trainable=1), side(dropped, trainable=1))
    assert [each.nature for each in found.findings] == ["harmless"]


def test_an_adapter_that_is_turned_off_after_the_first_pass_is_told_with_the_line() -> None:
    off = {name: lora.but(active=False, seen=0.0) for name, lora in adapter().items()}
    gone = Happened(what="disable", facts={"by": "peft"}, where="run.py:50")
    b = adapted(side(adapter()).add(gone), off)
    factor = only(seen(side(adapter()), b))
    assert (factor.label, factor.place) == ("attach", "all 9 adapted modules")
    assert "acts in the first passes of B and then no more" in factor.words
    assert "disabled it (run.py:50)" in factor.words


def test_ranks_of_fresh_adapters_are_compared_although_both_compute_the_base() -> None:
    a, b = ({name: draw(name, rank=rank) for name in NAMES} for rank in (4, 1))
    assert only(seen(training(a), training(b))).label == "rank"


def trained(
    still: tuple[str, ...] = (),
    *,
    lr: float = 1e-3,
    norm: float = 0.5,
    loss: float = 2.0,
    scale: float | None = None,
) -> Side:
    """An adapter at its start and after two steps, in which some modules stay as they were."""
    start = {name: lora.but(seen=scale) for name, lora in fresh(adapter()).items()}
    made = side(start, trainable=10)
    for step in (1, 2):
        norms = {f"{name}.{letter}": norm for name in NAMES for letter in "AB"}
        made.add(TrainStep(step=step, loss=loss, lr=(lr,), grad_norms=norms))
        now = {
            name: lora if name in still else lora.but(b=lora.b + np.float32(step))
            for name, lora in start.items()
        }
        adapted(made, now, when="step", step=step, trainable=10)
    return made


def test_modules_that_no_step_moves_are_not_trained_with_or_without_a_gradient() -> None:
    part = tuple(name for name in NAMES if ".0." in name)
    factor = only(seen(trained(), trained(part)))
    assert (factor.label, factor.place) == ("trainable", "model.layers.0 (3 of 9 adapted modules)")
    assert "stay in B as they were, bit by bit, though gradients reach them" in factor.words
    factor = only(seen(trained(NAMES, norm=0.0), trained()))
    assert factor.place == "all 9 adapted modules"
    assert "stay in A as they were, bit by bit: no gradient reaches them" in factor.words


def test_modules_that_nothing_was_to_move_are_not_called_untrained() -> None:
    assert not held(pair(trained(), trained(NAMES, lr=0.0)))
    assert not held(pair(trained(NAMES), trained(NAMES)))
    assert not held(pair(trained(), trained(NAMES, norm=float("nan"))))
    assert not held(pair(trained(), trained(NAMES, loss=0.0)))
    assert not held(pair(trained(), trained(NAMES, scale=0.0)))


def test_adapters_that_were_reset_between_steps_say_nothing_of_what_was_trained() -> None:
    b = trained(NAMES).add(Happened(what="reset", step=1))
    assert not held(pair(trained(), b))
