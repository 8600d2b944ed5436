"""Rung 5: updates that act are compared as products, whatever their factors."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.adapters import NAMES, Lora, adapted, adapter, base, draw, weighted
from tests.support.evidence import Side, pair
from weft.diagnose.finding import Finding, Looked
from weft.diagnose.rungs.update import look
from weft.runs.evidence import TrainStep

Modules = dict[str, Lora]


def side(modules: Modules, ref: str = "a", weights: dict | None = None, **fields) -> Side:
    made = Side(ref)
    if weights is not None:
        weighted(made, weights)
    return adapted(made, modules, **fields)


def seen(a: Modules | Side, b: Modules | Side) -> Looked:
    sides = [each if isinstance(each, Side) else side(each) for each in (a, b)]
    return look(pair(*sides))


def only(found: Looked) -> Finding:
    factors = [each for each in found.findings if each.nature == "factor"]
    assert len(factors) == 1, factors
    return factors[0]


def each(modules: Modules, **changes) -> Modules:
    return {name: lora.but(**changes) for name, lora in modules.items()}


def test_equal_updates_are_ruled_out_with_their_count() -> None:
    found = seen(adapter(), adapter())
    assert found.findings == ()
    assert found.equal == ("effective updates equal: 9 of 9 modules",)


@pytest.mark.parametrize(
    ("scale", "rule"),
    [
        (8.0, "alpha = 8, not divided by the rank"),
        (4.0, "alpha / sqrt(rank) = 8 / sqrt(4)"),
        (20.0, "20, the default of mlx-lm"),
        (0.25, "1 / rank, with rank 4: alpha is left out"),
        (1.0, "1: no scale"),
    ],
)
def test_another_scale_is_told_with_its_ratio_and_the_rule_that_gives_it(scale, rule) -> None:
    factor = only(seen(adapter(), each(adapter(), scale=scale)))
    assert (factor.label, factor.rung, factor.place) == ("scale", 5, "all 9 adapted modules")
    assert factor.value == pytest.approx(scale / 2)
    assert f"A scales by 2 (alpha / rank = 8 / 4), B scales by {scale:g} ({rule})" in factor.words


def test_the_measured_scale_counts_whatever_is_declared() -> None:
    factor = only(seen(each(adapter(), seen=2.0), each(adapter(), seen=16.0)))
    assert factor.label == "scale"
    assert factor.value == pytest.approx(8)


def test_a_scale_that_goes_with_the_rank_is_a_pattern() -> None:
    mixed = {name: draw(name, rank=2 if "q_proj" in name else 4) for name in NAMES}
    mixed = each(mixed, alpha=8.0)
    right = {name: lora.but(scale=8 / lora.a.shape[0]) for name, lora in mixed.items()}
    factor = only(seen(right, each(mixed, scale=2.0)))
    assert factor.label == "scale-pattern"


def test_a_scale_at_some_modules_names_them() -> None:
    off = adapter()
    off |= {name: lora.but(scale=6.0) for name, lora in off.items() if "mlp" in name}
    factor = only(seen(adapter(), off))
    assert (factor.label, factor.place, factor.value) == (
        "scale",
        "all 3 up_proj",
        pytest.approx(3),
    )


def test_scale_times_two_with_a_by_half_is_the_same_update() -> None:
    halved = {
        name: lora.but(a=lora.a / 2, scale=lora.scale * 2) for name, lora in adapter().items()
    }
    found = seen(adapter(), halved)
    assert [each.nature for each in found.findings] == ["harmless"]
    assert "their product is the same" in found.findings[0].words


def test_other_factors_of_the_same_product_are_harmless() -> None:
    gauge = np.array([[2.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 3, 1], [1, 0, 0, 1]])
    turned = {
        name: lora.but(a=np.linalg.inv(gauge) @ lora.a, b=lora.b @ gauge)
        for name, lora in adapter().items()
    }
    assert [each.nature for each in seen(adapter(), turned).findings] == ["harmless"]


def test_factors_rounded_to_16_bits_are_harmless() -> None:
    rounded = {
        name: lora.but(
            a=lora.a.astype(np.float16).astype(np.float32),
            b=lora.b.astype(np.float16).astype(np.float32),
        )
        for name, lora in adapter().items()
    }
    found = seen(adapter(), rounded)
    assert [each.nature for each in found.findings] == ["harmless"]


def test_an_adapter_that_does_nothing_is_not_attached() -> None:
    for off in (
        each(adapter(), active=False),
        each(adapter(), seen=0.0),
        {name: lora.but(b=np.zeros_like(lora.b)) for name, lora in adapter().items()},
    ):
        factor = only(seen(adapter(), off))
        assert (factor.label, factor.value) == ("attach", 0.0)
        assert "does nothing in B" in factor.words


def test_factors_that_stand_at_another_module_are_a_key_map() -> None:
    swapped = adapter()
    for layer in range(3):
        q, v = (f"model.layers.{layer}.self_attn.{part}_proj" for part in "qv")
        swapped[q], swapped[v] = swapped[v], swapped[q]
    factor = only(seen(adapter(), swapped))
    assert factor.label == "key-map"
    assert factor.place == "all 6 q_proj and v_proj"
    assert "the other way round" in factor.words


def test_a_swap_is_seen_through_other_factors_of_the_same_products() -> None:
    gauge = np.array([[2.0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 3, 1], [1, 0, 0, 1]])
    swapped = adapter()
    swapped[NAMES[0]], swapped[NAMES[1]] = swapped[NAMES[1]], swapped[NAMES[0]]
    swapped |= {
        name: swapped[name].but(a=np.linalg.inv(gauge) @ swapped[name].a, b=swapped[name].b @ gauge)
        for name in NAMES[:2]
    }
    factor = only(seen(adapter(), swapped))
    assert (factor.label, factor.value) == ("key-map", 2)


def test_one_factor_that_stands_at_another_module_is_told_as_such() -> None:
    swapped = adapter()
    q, v = NAMES[0], NAMES[1]
    swapped[q], swapped[v] = (
        swapped[q].but(b=swapped[v].b),
        swapped[v].but(b=swapped[q].b),
    )
    factor = only(seen(adapter(), swapped))
    assert factor.label == "key-map"
    assert "factor B" in factor.words


def test_the_same_numbers_in_another_order_are_a_layout() -> None:
    moved = {
        name: lora.but(b=lora.b.T.reshape(lora.b.shape).copy()) for name, lora in adapter().items()
    }
    factor = only(seen(adapter(), moved))
    assert (factor.label, factor.place) == ("layout", "all 9 adapted modules")


def test_other_tensors_are_another_checkpoint_with_their_cosine() -> None:
    mixed = {
        name: lora.but(b=lora.b + 0.5 * draw(name, seed=9).b) for name, lora in adapter().items()
    }
    factor = only(seen(adapter(), mixed))
    assert factor.label == "checkpoint"
    assert factor.value is not None and 0 < factor.value < 0.5


def test_an_update_in_the_weights_is_the_one_beside_them() -> None:
    modules, weights = adapter(), base()
    merged = {
        name: weight + (modules[name].delta if name in modules else 0)
        for name, weight in weights.items()
    }
    a = side(modules, weights=weights)
    b = side(each(modules, merged=True, seen=0.0), weights=merged)
    found = seen(a, b)
    assert [each.nature for each in found.findings] == ["harmless"]
    assert "merged into the weights on one side" in found.findings[0].words
    assert found.equal == ("effective updates equal: 9 of 9 modules",)


def test_an_update_that_is_merged_and_still_active_counts_twice() -> None:
    modules, weights = adapter(), base()
    merged = {
        name: weight + (modules[name].delta if name in modules else 0)
        for name, weight in weights.items()
    }
    factor = only(seen(side(modules, weights=weights), side(modules, weights=merged)))
    assert factor.label == "double-apply"
    assert factor.swap is not None and factor.swap.factor == "base"  # where the second one is
    assert factor.value == pytest.approx(2, abs=1e-3)


def test_an_update_that_was_merged_at_another_strength_is_a_scale() -> None:
    modules, weights = adapter(), base()
    merged = {
        name: weight + (4 * modules[name].delta if name in modules else 0)
        for name, weight in weights.items()
    }
    a = side(modules, weights=weights)
    b = side(each(modules, merged=True, seen=0.0), weights=merged)
    factor = only(seen(a, b))
    assert factor.label == "scale"
    assert factor.value == pytest.approx(4, abs=1e-3)


def test_a_module_that_adds_what_its_factors_do_not_say_is_named() -> None:
    odd = adapter()
    odd[NAMES[0]] = odd[NAMES[0]].but(unexplained=0.4)
    factor = only(seen(adapter(), odd))
    assert (factor.label, factor.place) == ("implementation", NAMES[0])


def test_where_both_train_only_scales_are_compared() -> None:
    def trained(scale: float, seed: int) -> Side:
        start = {n: lora.but(b=np.zeros_like(lora.b)) for n, lora in adapter(seed=seed).items()}
        later = each(adapter(seed=seed), scale=scale, seen=scale)
        made = adapted(weighted(Side(), base()), each(start, scale=2.0))
        made.add(TrainStep(step=1))
        return adapted(made, later, when="step", step=1)

    def scales(found: Looked) -> list[str]:
        return [each.nature for each in found.findings if each.label == "scale"]

    small = Side()
    weighted(small, base())
    start = {name: draw(name, rank=1) for name in NAMES}
    start = {name: lora.but(b=np.zeros_like(lora.b), scale=8.0) for name, lora in start.items()}
    adapted(small, start).add(TrainStep(step=1))
    assert scales(seen(trained(2.0, 0), small)) == ["effect"]  # alpha 8 over rank 4 and rank 1
    assert seen(trained(2.0, 0), trained(2.0, 1)).findings == ()
    factor = only(seen(trained(2.0, 0), trained(0.25, 0)))
    assert (factor.label, factor.value) == ("scale", pytest.approx(0.125))


def test_factors_that_are_not_finite_are_told_as_such_and_not_fitted() -> None:
    name = NAMES[0]
    broken = adapter() | {name: adapter()[name].but(a=np.full_like(adapter()[name].a, np.nan))}
    for one, other, words in (
        (adapter(), broken, "not finite in B, and are in A"),
        (broken, adapter(), "not finite in A, and are in B"),
    ):
        found = seen(one, other)
        factor = only(found)
        assert (factor.label, factor.place, factor.value) == ("overflow", name, 1)
        assert words in factor.words
        assert found.equal == ("effective updates equal: 8 of 8 modules",)
        assert found.unseen == (
            "effective updates at 1 of 9 modules: their factors are not finite",
        )
