"""Floors: measured where nulls were, start values where not, and never slack for a fault."""

from __future__ import annotations

import pytest

from tests.support.evidence import Side, pair
from weft.diagnose.compare.noise import START, floor, logit_floor
from weft.runs.evidence import Check


def side(*checks: Check, dtype: str = "float32", rows: int = 2, length: int = 3) -> Side:
    made = Side().forward([[1] * length] * rows, dtype=dtype)
    for check in checks:
        made.add(check)
    return made


def null(name: str, *values: float, unit: str = "nats", **more: float) -> Check:
    return Check(name=name, unit=unit, values=values, **more)  # type: ignore[arg-type]


def test_without_nulls_the_floor_is_a_start_value_and_says_so() -> None:
    found = floor(pair(side(), side()), "nats")
    assert found.value == START["nats"]["float32"]
    assert "start value" in found.source and not found.measured


def test_the_less_exact_side_counts() -> None:
    assert floor(pair(side(), side(dtype="bfloat16")), "hidden").value == 2e-2


def test_repeats_and_last_place_draws_of_both_sides_make_the_floor() -> None:
    a, b = side(null("ulp", 1e-7, 2e-7)), side(null("repeat", 0.0), null("ulp", 3e-7))
    found = floor(pair(a, b), "nats")
    assert found.measured
    assert 2e-7 < found.value <= 3e-7
    assert found.source == "4 null draws (repeat, ulp)"


def test_a_batch_is_a_null_only_where_batches_differ() -> None:
    row = null("row", 1e-6)
    alike = pair(side(null("ulp", 1e-8), row), side(null("ulp", 1e-8)))
    apart = pair(side(null("ulp", 1e-8), row), side(null("ulp", 1e-8), rows=1))
    assert floor(alike, "nats").value == pytest.approx(1e-8)
    assert floor(apart, "nats").value == pytest.approx(1e-6, rel=0.1)


def test_a_null_that_fails_is_no_slack() -> None:
    broken = pair(side(null("ulp", 1e-8), null("row", 0.5)), side(rows=1))
    assert floor(broken, "nats").value <= START["nats"]["float32"]


def test_in_16_bits_a_null_counts_no_more_than_the_same_in_float32_says() -> None:
    exact, ratio = 1e-12, (2.0**-7 / 2.0**-23) ** 2
    a = side(null("row", 0.9, in_float32=exact), dtype="bfloat16")
    b = side(dtype="bfloat16", rows=1)
    assert floor(pair(a, b), "nats").value <= 1.01 * 7.3e-12 * ratio


def test_what_no_null_covers_leaves_the_start_value() -> None:
    a, b = side(null("ulp", 1e-9)), side(null("ulp", 1e-9))
    a.settings(environment__threads=1)
    b.settings(environment__threads=2)
    found = floor(pair(a, b), "nats")
    assert found.value == START["nats"]["float32"]
    assert "threads" in found.source


def test_a_flip_of_first_tokens_is_judged_by_logits_or_else_by_nats() -> None:
    measured = pair(side(null("ulp", 1e-3, unit="logits")), side())
    assert logit_floor(measured).value == pytest.approx(1e-3)
    from_nats = logit_floor(pair(side(null("ulp", 2e-8)), side()))
    assert from_nats.value == pytest.approx(5 * 2e-4)
    assert from_nats.measured
