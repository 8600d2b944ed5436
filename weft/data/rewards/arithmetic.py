"""The value of an arithmetic expression that a model wrote: read here, never run as code.

The cost is linear in the length, which is bounded. There is no recursion, and no number grows
beyond a bound: what is too long, too deep or too large has no value.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

Number = int | float | Fraction

TOKEN = re.compile(r"[0-9]+|\*\*|//|[-+*/()]")
ALLOWED = frozenset("0123456789+-*/() ")
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "u+": 3, "u-": 3, "**": 4}
LARGEST_BITS = 4096


class NoValue(ValueError):
    """The text is no expression of these rules, or has no value."""


@dataclass(frozen=True)
class Rules:
    """Which expressions have a value, and in which arithmetic."""

    length: int
    """Characters of an expression."""
    depth: int
    """Brackets within brackets."""
    digits: int
    """Digits of a number."""
    leading_zeros: bool
    """Whether zeros alone (`00`) are a number."""
    number: Callable[[str], Number]
    unary: Mapping[str, Callable[[Number], Number]]
    binary: Mapping[str, Callable[[Number, Number], Number]]


def _capped(value: Number) -> Number:
    if isinstance(value, complex):
        raise NoValue("it is no real number")
    if isinstance(value, int) and value.bit_length() > LARGEST_BITS:
        raise NoValue(f"it has more than {LARGEST_BITS} bits")
    return value


def _power(base: Number, exponent: Number) -> Number:
    grows = isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1 and exponent > 0
    if grows and int(base).bit_length() * exponent > LARGEST_BITS:
        raise NoValue(f"it has more than {LARGEST_BITS} bits")
    return base**exponent


STRICT = Rules(
    length=256,
    depth=32,
    digits=6,
    leading_zeros=False,
    number=lambda digits: Fraction(int(digits)),
    unary={"u-": lambda value: -value},
    binary={
        "+": operator.add,
        "-": operator.sub,
        "*": operator.mul,
        "/": operator.truediv,
    },
)
"""The four operations, exactly."""

PAPER = Rules(
    length=4096,
    depth=200,
    digits=4096,
    leading_zeros=True,
    number=int,
    unary={**STRICT.unary, "u+": lambda value: +value},
    binary={**STRICT.binary, "//": operator.floordiv, "**": _power},
)
"""Whole and floating-point numbers with the operators that Python has of these characters."""


def value_of(text: str, rules: Rules) -> Number:
    """The value of an expression; raises `NoValue` where it has none."""
    if len(text) > rules.length:
        raise NoValue(f"it is longer than {rules.length} characters")
    try:
        return _evaluate(text, rules)
    except (ArithmeticError, TypeError) as error:
        raise NoValue(str(error)) from None


def _evaluate(text: str, rules: Rules) -> Number:
    """Operators wait on a stack until one comes that binds less."""
    values: list[Number] = []
    waiting: list[str] = []
    depth = 0
    operand = True  # what must come next: an operand, or what follows one

    def apply() -> None:
        name = waiting.pop()
        if name in rules.unary:
            values.append(_capped(rules.unary[name](values.pop())))
        else:
            right = values.pop()
            values.append(_capped(rules.binary[name](values.pop(), right)))

    for token in _tokens(text):
        if operand and token.isdigit():
            values.append(_number(token, rules))
            operand = False
        elif operand and token == "(":
            depth += 1
            if depth > rules.depth:
                raise NoValue(f"it has more than {rules.depth} brackets within brackets")
            waiting.append(token)
        elif operand and f"u{token}" in rules.unary:
            waiting.append(f"u{token}")
        elif not operand and token == ")":
            while waiting and waiting[-1] != "(":
                apply()
            if not waiting:
                raise NoValue("a bracket is closed that was not opened")
            waiting.pop()
            depth -= 1
        elif not operand and token in rules.binary:
            binds = PRECEDENCE[token]
            while waiting and waiting[-1] != "(":
                before = PRECEDENCE[waiting[-1]]
                if before < binds or (before == binds and token == "**"):
                    break
                apply()
            waiting.append(token)
            operand = True
        else:
            raise NoValue(f"{token!r} cannot stand where it stands")
    if operand or depth:
        raise NoValue("it is not complete")
    while waiting:
        apply()
    (value,) = values
    return value


def _number(digits: str, rules: Rules) -> Number:
    if len(digits) > rules.digits:
        raise NoValue(f"a number has more than {rules.digits} digits")
    if digits[0] == "0" and digits != "0" and not (rules.leading_zeros and set(digits) == {"0"}):
        raise NoValue("a number begins with 0")
    return rules.number(digits)


def _tokens(text: str) -> Iterator[str]:
    if not set(text) <= ALLOWED:
        raise NoValue("it has other characters than digits, + - * / ( ) and spaces")
    return (found.group() for found in TOKEN.finditer(text))


def is_near(value: Number, target: Number, within: float) -> bool:
    """Whether a value is a target, as floating-point numbers."""
    try:
        return math.fabs(float(value) - float(target)) < within
    except OverflowError:
        return False
