"""Groups of modules are named as a person would name them."""

from __future__ import annotations

import pytest

from weft.diagnose.compare.places import group, number

ALL = [
    f"model.layers.{layer}.{part}"
    for layer in range(4)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (ALL, "all 12 adapted modules"),
        (ALL[:1], "model.layers.0.self_attn.q_proj"),
        (ALL[0::3], "all 4 q_proj"),
        ([*ALL[0::3], *ALL[1::3]], "all 8 q_proj and v_proj"),
        (ALL[3:5], "model.layers.1.self_attn (2 of 12 adapted modules)"),
        (
            [ALL[3], ALL[5]],
            "model.layers.1: self_attn.q_proj and mlp.up_proj (2 of 12 adapted modules)",
        ),
        (ALL[3:6], "model.layers.1 (3 of 12 adapted modules)"),
        (ALL[:9], "9 of 12 adapted modules (layers 0 to 2)"),
        (ALL[0:6:3], "2 of 12 adapted modules (q_proj in layers 0, 1)"),
        ([], "none of 12 adapted modules"),
    ],
)
def test_a_group_is_named_by_what_it_has_in_common(names: list[str], words: str) -> None:
    assert group(names, ALL) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2.0, "2"),
        (0.123456, "0.1235"),
        (65504.0, "65,504"),
        (1e-7, "1e-07"),
        (1e50, "1e+50"),
        (float("-inf"), "-inf"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_have_four_digits_at_most(value: float, words: str) -> None:
    assert number(value) == words
