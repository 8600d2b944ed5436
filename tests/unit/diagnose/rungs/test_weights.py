"""Rung 3: base weights by tensor, besides what adapters explain."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.adapters import NAMES, adapted, adapter, base, rounded, weighted
from tests.support.evidence import Side, pair
from weft.core.keys import Key
from weft.diagnose.finding import Finding, Looked
from weft.diagnose.rungs import attachment, update
from weft.diagnose.rungs.weights import look
from weft.runs.evidence import Happened

Weights = dict[str, np.ndarray]
TIED = (("lm_head.weight", "model.embed_tokens.weight"),)


def side(weights: Weights, **fields) -> Side:
    return weighted(Side(), weights, **fields)


def seen(a: Side, b: Side) -> Looked:
    return look(pair(a, b))


def only(found: Looked) -> Finding:
    factors = [each for each in found.findings if each.nature == "factor"]
    assert len(factors) == 1, factors
    return factors[0]


def moved(weights: Weights, names: list[str], size: float) -> Weights:
    random = Key.of(7).numpy()
    return {
        name: (w + size * random.standard_normal(w.shape)).astype(np.float32)
        if name in names
        else w
        for name, w in weights.items()
    }


def test_equal_weights_are_ruled_out_with_their_count() -> None:
    found = seen(side(base()), side(base()))
    assert found.findings == ()
    assert found.equal == ("base weights equal: 10 of 10 tensors",)


def test_another_revision_differs_in_all_tensors_by_a_little() -> None:
    factor = only(seen(side(base()), side(moved(base(), list(base()), 0.002))))
    assert (factor.label, factor.place) == ("base", "base weights")
    assert factor.value is not None and 0.003 < factor.value < 0.02
    assert "10 of 10 tensors" in factor.words


def test_one_kind_of_tensor_is_named() -> None:
    factor = only(seen(side(base()), side(moved(base(), [NAMES[2], NAMES[5], NAMES[8]], 0.01))))
    assert (factor.label, factor.place) == ("base", "3 x mlp.up_proj")


def test_one_tensor_is_named() -> None:
    factor = only(seen(side(base()), side(moved(base(), [NAMES[4]], 0.01))))
    assert (factor.label, factor.place) == ("base", NAMES[4])


def test_a_head_that_was_untied_and_overwritten_is_named() -> None:
    tied, loose = side(base(), tied=TIED), side(moved(base(), ["lm_head"], 0.01))
    factor = only(seen(tied, loose))
    assert (factor.label, factor.place) == ("tied", "lm_head.weight")
    assert "one tensor in A and two in B" in factor.words


def test_untied_and_equal_is_harmless() -> None:
    found = seen(side(base(), tied=TIED), side(base()))
    assert [each.nature for each in found.findings] == ["harmless"]


def test_another_dtype_is_a_precision_and_no_other_base() -> None:
    factor = only(seen(side(base()), side(base(dtype="bfloat16"), dtype="bfloat16")))
    assert (factor.label, factor.place) == ("precision", "base weights")
    assert "float32 in A and bfloat16 in B" in factor.words


def test_another_dtype_does_not_hide_another_revision() -> None:
    other = {n: rounded(w, "bfloat16") for n, w in moved(base(), list(base()), 0.05).items()}
    labels = {f.label for f in seen(side(base()), side(other, dtype="bfloat16")).findings}
    assert "base" in labels


def test_other_shapes_are_another_model() -> None:
    small = {name: weight[:, :8] for name, weight in base().items()}
    factor = only(seen(side(base()), side(small)))
    assert factor.label == "base"
    assert "different models" in factor.words


def test_a_key_of_the_configuration_that_acts_is_named_with_both_values() -> None:
    a = side(base(), config={"rope_theta": 10000.0, "transformers_version": "5.0"})
    b = side(base(), config={"rope_theta": 500000.0, "transformers_version": "5.1"})
    factor = only(seen(a, b))
    assert (factor.label, factor.place) == ("implementation", "rope_theta")
    assert "10000.0 in A and 500000.0 in B" in factor.words


def test_another_attention_is_the_same_function() -> None:
    found = seen(side(base(), attention="sdpa"), side(base(), attention="eager"))
    assert [each.nature for each in found.findings] == ["harmless"]


def test_a_base_that_holds_the_update_is_no_other_base() -> None:
    modules = adapter()
    merged = {n: w + (modules[n].delta if n in modules else 0) for n, w in base().items()}
    a = adapted(side(base()), modules)
    b = adapted(side(merged), {n: x.but(merged=True, seen=0.0) for n, x in modules.items()})
    assert seen(a, b).findings == ()


def test_a_base_that_was_moved_besides_the_update_is_another() -> None:
    modules = adapter()
    merged = {n: w + (modules[n].delta if n in modules else 0) for n, w in base().items()}
    a = adapted(side(base()), modules)
    off = moved(merged, list(NAMES), 0.02)
    b = adapted(side(off), {n: x.but(merged=True, seen=0.0) for n, x in modules.items()})
    factor = only(seen(a, b))
    assert (factor.label, factor.value is not None) == ("base", True)


def in_bfloat16(size: float, unloaded: bool) -> tuple[Side, Side]:
    """An update beside a base in bfloat16, and merged into it; the adapter may be gone then."""
    modules = {name: lora.but(b=lora.b * size) for name, lora in adapter().items()}
    weights = base(dtype="bfloat16")
    merged = {
        name: rounded(w + (modules[name].delta if name in modules else 0), "bfloat16")
        for name, w in weights.items()
    }
    a = adapted(side(weights, dtype="bfloat16"), modules)
    b = side(merged, dtype="bfloat16").add(Happened(what="merge", step=0))
    return a, b if unloaded else adapted(
        b, {n: x.but(merged=True, seen=0.0) for n, x in modules.items()}
    )


@pytest.mark.parametrize("unloaded", [False, True])
@pytest.mark.parametrize("size", [0.001, 0.01])
def test_an_update_below_half_a_unit_in_the_last_place_is_lost_at_a_merge(size, unloaded) -> None:
    two = pair(*in_bfloat16(size, unloaded))
    factor = only(look(two))
    assert (factor.label, factor.place) == ("merge-precision", "all 9 adapted modules")
    assert factor.value is not None and factor.value > 0.3
    for rung in (attachment, update):
        assert [each for each in rung.look(two).findings if each.nature == "factor"] == []


@pytest.mark.parametrize("unloaded", [False, True])
def test_an_update_that_survives_its_merge_is_the_same(unloaded) -> None:
    two = pair(*in_bfloat16(5.0, unloaded))
    for rung in (look, attachment.look, update.look):
        assert [each for each in rung(two).findings if each.nature == "factor"] == []


@pytest.mark.parametrize("swapped", [False, True])
def test_a_merge_that_nobody_told_of_is_known_by_what_rounding_left_of_it(swapped) -> None:
    """A script merged by hand, and its adapter is gone when its model is first used."""
    a, b = in_bfloat16(0.01, unloaded=True)
    b.events = [each for each in b.events if not isinstance(each, Happened)]
    two = pair(b, a) if swapped else pair(a, b)
    factor = only(look(two))
    assert (factor.label, factor.place) == ("merge-precision", "all 9 adapted modules")
    for rung in (attachment, update):
        assert [each for each in rung.look(two).findings if each.nature == "factor"] == []


def test_a_base_that_is_off_by_one_unit_anyhow_is_another_base() -> None:
    """As coarse as what a merge leaves, at the same modules, and not along the update."""
    a, _ = in_bfloat16(0.01, unloaded=True)
    nudged = base(dtype="bfloat16")
    random = Key.of(5).numpy()
    for name in NAMES:
        sign = random.choice([-1.0, 1.0], nudged[name].shape)
        nudged[name] = rounded(nudged[name] * (1 + sign * 2.0**-8), "bfloat16")
    labels = {each.label for each in seen(a, side(nudged, dtype="bfloat16")).findings}
    assert "base" in labels and "merge-precision" not in labels


def folding(weights: Weights, adapter: str, dtype: str) -> Side:
    """A program that put an adapter into weights of a dtype, and reads the result only."""
    made = Side()
    made.add(Happened(what="load", facts={"class": "LlamaForCausalLM", "dtype": dtype}))
    made.add(Happened(what="load", facts={"adapter": "default", "sha256": adapter}))
    made.add(Happened(what="merge", facts={"modules": len(NAMES)}, where="make.py:3"))
    return weighted(made, weights)


def test_one_merge_into_two_dtypes_is_told_as_that_and_not_as_another_base() -> None:
    whole, close, far = base(), moved(base(), NAMES, 1e-4), moved(base(), NAMES, 0.02)
    factor = only(seen(folding(whole, "1f", "float32"), folding(close, "1f", "bfloat16")))
    assert (factor.label, factor.where) == ("merge-precision", "make.py:3")
    assert "float32 weights in A and into bfloat16 weights in B" in factor.words
    for b in (
        folding(far, "1f", "bfloat16"),  # more than rounding
        folding(close, "2e", "bfloat16"),  # another adapter
        folding(close, "1f", "float32"),  # the same dtype
    ):
        assert only(seen(folding(whole, "1f", "float32"), b)).label == "base"
