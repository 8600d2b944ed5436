"""Expressions that a model wrote, and their values."""

from __future__ import annotations

import random
import re
import time
import warnings
from fractions import Fraction

import pytest

from weft.data.rewards.arithmetic import PAPER, STRICT, NoValue, value_of


def python(text: str) -> int | float | None:
    """What Python makes of an expression; None for an error or a number that is not real."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = eval(text, {"__builtins__": None}, {})
        return value if isinstance(value, int | float) else None
    except Exception:
        return None


def ours(text: str, rules=PAPER):
    try:
        return value_of(text, rules)
    except NoValue:
        return None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("1+2*3", 7),
        ("(1+2)*3", 9),
        ("8-4-2", 2),
        ("8/4/2", 1),
        ("7/2", Fraction(7, 2)),
        ("1/3*3", 1),
        ("--5", 5),
        ("2*-3", -6),
        ("-(2-5)", 3),
        (" 4 + ( 5 ) ", 9),
        ("0", 0),
    ],
)
def test_the_four_operations_are_exact(text: str, value: Fraction) -> None:
    assert value_of(text, STRICT) == value
    assert ours(text) == pytest.approx(float(value))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "+",
        "1+",
        "*1",
        "1 2",
        "(1",
        "1)",
        "()",
        "2(3)",
        "(2)(3)",
        "(2)3",
        "1//0",
        "1/0",
        "0/0",
        "1/(2-2)",
        "0**-1",
        "* *",
        "2* *3",
        "7/ /2",
        "1***2",
        "007",
        "01+1",
        "1.5",
        "1e3",
        "1_0",
        "0x1",
        "1,2",
        "a",
        "1\n",
        "1\t+1",
        "\uff11+1",
        "\u0661+1",
        "1\u00d72",
        "1\x00",
        "__import__('os')",
    ],
)
@pytest.mark.parametrize("rules", [STRICT, PAPER], ids=["strict", "paper"])
def test_what_is_no_expression_has_no_value(text: str, rules) -> None:
    with pytest.raises(NoValue):
        value_of(text, rules)


@pytest.mark.parametrize(
    ("text", "value"),
    [("7//2+1", 4), ("2**3+1", 9), ("+3", 3), ("00+1", 1), ("2**-1", 0.5), ("-2**2", -4)],
)
def test_holes_of_the_published_grader_have_a_value_on_paper_only(text: str, value: float) -> None:
    assert ours(text) == value == python(text)
    assert ours(text, STRICT) is None


def test_any_expression_has_the_value_that_python_gives_it() -> None:
    rng = random.Random(0)
    pieces = ["1", "2", "3", "4", "+", "-", "*", "/", "//", "**", "(", ")", " ", "0"]
    valued = 0
    for _ in range(40_000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 9)))
        if text.count("**") > 2 or re.search(r"\d\d", text):
            continue  # neither 4**4**4**4 nor 44**44**44 would end
        assert ours(text) == python(text.strip(" ")), text
        valued += ours(text) is not None
    assert valued > 2000


def test_any_expression_of_the_four_operations_has_its_exact_value() -> None:
    rng = random.Random(1)
    pieces = ["1", "20", "3", "47", "+", "-", "*", "/", "(", ")", " "]
    valued = 0
    for _ in range(40_000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 11)))
        if "**" in text or "//" in text or re.search(r"\d{7}", text):
            continue
        exact, near = ours(text, STRICT), python(text.strip(" "))
        if exact is None:
            assert near is None or "+" in text, text  # a plus sign before a number
            continue
        assert float(exact) == pytest.approx(near)
        valued += 1
    assert valued > 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1+" * 128 + "1", "longer than 256 characters"),
        ("(" * 33 + "1" + ")" * 33, "more than 32 brackets"),
        ("1234567", "more than 6 digits"),
    ],
)
def test_strict_bounds(text: str, said: str) -> None:
    with pytest.raises(NoValue, match=said):
        value_of(text, STRICT)
    inside = text.replace("1+1+", "1", 1).replace("((", "(", 1).replace("))", ")", 1)
    assert value_of(inside.replace("1234567", "123456"), STRICT) is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("99**98**97", "more than 4096 bits"),
        ("9**9**9**9**9", "more than 4096 bits"),
        ("(0-99)**(98**97)", "more than 4096 bits"),
        ("2**4000*2**4000", "more than 4096 bits"),
        ("-" * 4096 + "1", "longer than 4096"),
        ("(" * 201 + "1" + ")" * 201, "more than 200 brackets"),
        ("(0-2)**(1/2)", "no real number"),
        ("2**1030/1*1.0".replace("1.0", "1"), "too large"),
        ("(1/3)**99**9", ""),
    ],
)
def test_paper_bounds(text: str, said: str) -> None:
    start = time.process_time()
    if said:
        with pytest.raises(NoValue, match=said):
            value_of(text, PAPER)
    else:
        value_of(text, PAPER)
    assert time.process_time() - start < 0.1


def test_a_power_of_one_is_one_however_large_the_exponent() -> None:
    assert value_of("1**(99**98)", PAPER) == 1
