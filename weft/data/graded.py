"""Rows whose completions are graded: their prompts, and responses to learn from beforehand."""

from __future__ import annotations

import re
from typing import Any

from weft.data.fields import field, kind_of, response, text
from weft.data.rewards.countdown import ANSWER, last_answer, numbers_of, solves
from weft.data.rows import RowProblem

LARGEST = 999_999
DECIMAL = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?")

# The wording is that of TinyZero and those who compare with it, to the letter.
COUNTDOWN = (
    "Using the numbers [{numbers}], create an equation that equals {target}. You can use basic "
    "arithmetic operations (+, -, *, /) and each number can only be used once. Show your work in "
    "<think> </think> tags. And return the final answer in <answer> </answer> tags, for example "
    "<answer> (1 + 2) / 3 </answer>.\n"
    "Let me solve this step by step.\n"
    "<think>"
)


def ask_countdown(row: dict[str, Any]) -> str:
    """`context` as it is, or the published prompt made of `numbers` and `target`."""
    numbers = _numbers(row)
    target = _target(row)
    if row.get("context") is not None:
        return response(row, "context")
    return COUNTDOWN.format(numbers=" ".join(map(str, numbers)), target=target)


def answer_countdown(row: dict[str, Any]) -> str:
    """What follows the prompt: `solution`, if it has an answer block; else as thought and answer.

    It must be right.
    """
    if row.get("solution") is None:
        raise RowProblem(
            "field `solution` is missing, and without it there is no response to learn: only "
            "`objective: {name: reward}` needs none"
        )
    solution = response(row, "solution")
    expression = last_answer(solution) if ANSWER in solution else solution
    if not solves(expression, row, "strict"):
        raise RowProblem(
            f"field `solution` does not make {row['target']} of {numbers_of(row)}: {solution!r}"
        )
    if ANSWER in solution:
        return solution
    return f"{solution} = {row['target']}</think>\n<answer>{solution}</answer>"


def ask_conciseness(row: dict[str, Any]) -> str:
    """`prompt` as it is; an answer must be there, because completions are measured by it."""
    answer_conciseness(row)
    return text(row, "prompt")


def answer_conciseness(row: dict[str, Any]) -> str:
    """`answer`, or `target` as the public rows call it."""
    return response(row, "answer" if "answer" in row or "target" not in row else "target")


def _numbers(row: dict[str, Any]) -> list[int]:
    name = "nums" if "nums" in row and "numbers" not in row else "numbers"
    numbers = field(row, name)
    if not isinstance(numbers, list) or not numbers:
        raise RowProblem(f"field `{name}` must be a list of numbers, is {_shown(numbers)}")
    for i, number in enumerate(numbers):
        if type(number) is not int or not 0 <= number <= LARGEST:
            raise RowProblem(
                f"`{name}[{i}]` must be a whole number from 0 to {LARGEST}, is {_shown(number)}"
            )
    return numbers


def _target(row: dict[str, Any]) -> object:
    target = field(row, "target")
    if type(target) not in (int, float, str) or not DECIMAL.fullmatch(str(target)):
        raise RowProblem(
            "field `target` must be a whole or decimal number of at most 9 digits before and "
            f"after the point, is {_shown(target)}"
        )
    return target


def _shown(value: object) -> str:
    return f"{value}"[:40] if type(value) in (int, float) else kind_of(value)
