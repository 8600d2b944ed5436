"""The reward of countdown: make a target of some numbers, each used once.

    reward = 0.1 * format + answer

Both are judged on the completion alone, whose prompt ends in `<think>`. The values are those of
the published grader: 0, 0.01, 0.05, 0.06, 0.1, 1.05, 1.06 and 1.1. Nothing is run as code, and
every cost is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from weft.data.rewards.arithmetic import ALLOWED, PAPER, STRICT, NoValue, is_near, value_of
from weft.data.rewards.grade import Grade

Mode = Literal["strict", "paper"]

THINK, THOUGHT = "<think>", "</think>"
ANSWER, ANSWERED = "<answer>", "</answer>"
NEAR = 1e-5
DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Countdown:
    """Rewards for rows with `numbers` and `target`.

    `strict` is exact arithmetic with + - * / and brackets. `paper` is the published grader with
    its holes. Both always judge, and `disagrees` counts where they differ.
    """

    mode: Mode = "strict"
    name: str = "countdown"

    def __call__(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Grade]:
        """The grade of each completion."""
        return [self._grade(row, text) for row, text in zip(rows, texts, strict=True)]

    def ready(self) -> None:
        """Nothing is needed."""

    def record(self) -> dict[str, str]:
        """The name and the mode."""
        return {"reward": self.name, "mode": self.mode}

    def close(self) -> None:
        """Nothing is held."""

    def _grade(self, row: Mapping[str, Any], text: str) -> Grade:
        form, expression = format_of(text), last_answer(text)
        right: dict[Mode, bool] = {
            "strict": solves(expression, row, "strict"),
            "paper": solves(expression, row, "paper"),
        }
        answer = float(right[self.mode])
        parts = {
            "format": form,
            "answer": answer,
            "disagrees": float(right["strict"] != right["paper"]),
        }
        return Grade(round(0.1 * form + answer, 2), parts)


def format_of(completion: str) -> float:
    """1 for a thought, a line break and an answer up to the end; else 0.1 and 0.5 for each block.

    That is what the published regular expressions find in `<think>` and the completion, at a
    linear cost.
    """
    thought = completion.find(THOUGHT)
    between = completion.find(f"{THOUGHT}\n{ANSWER}")
    body = completion.removesuffix("\n")
    begun = between + len(f"{THOUGHT}\n{ANSWER}")
    if between >= 0 and body.endswith(ANSWERED) and begun <= len(body) - len(ANSWERED):
        return 1.0
    opened = completion.find(ANSWER)
    closed = opened >= 0 and completion.find(ANSWERED, opened + len(ANSWER)) >= 0
    return (0.1 if thought >= 0 else 0.0) + (0.5 if closed else 0.0)


def last_answer(completion: str) -> str | None:
    """What the last answer block holds; blocks do not overlap."""
    answer, position = None, 0
    while (opened := completion.find(ANSWER, position)) >= 0:
        begun = opened + len(ANSWER)
        closed = completion.find(ANSWERED, begun)
        if closed < 0:
            break
        answer, position = (begun, closed), closed + len(ANSWERED)
    return completion[slice(*answer)] if answer else None


def solves(expression: str | None, row: Mapping[str, Any], mode: Mode) -> bool:
    """Whether an expression is made of exactly the numbers of a row, and makes its target."""
    if expression is None:
        return False
    rules = STRICT if mode == "strict" else PAPER
    expression = expression.removesuffix("\n")
    if len(expression) > rules.length or not set(expression) <= ALLOWED:
        return False
    if _significant(DIGITS.findall(expression)) != _significant(map(str, numbers_of(row))):
        return False
    try:
        value = value_of(expression, rules)
    except NoValue:
        return False
    target = target_of(row)
    if mode == "strict" and target.denominator == 1:
        return value == target
    return is_near(value, target, NEAR)


def numbers_of(row: Mapping[str, Any]) -> Sequence[int]:
    """The numbers of a row: `numbers`, or `nums` as some public rows call them."""
    return row["numbers"] if "numbers" in row else row["nums"]


def target_of(row: Mapping[str, Any]) -> Fraction:
    """The target of a row; a decimal number is taken as it is written."""
    return Fraction(str(row["target"]))


def _significant(numbers: Any) -> list[str]:
    """Numbers as text without leading zeros, in an order of its own."""
    return sorted(digits.lstrip("0") or "0" for digits in numbers)
