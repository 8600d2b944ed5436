"""The countdown reward: its published values, its holes, and how long an attack on it takes."""

from __future__ import annotations

import random
import re
import time
from typing import Any

import pytest

from weft.data.rewards.countdown import Countdown, format_of, last_answer

ROW = {"numbers": [44, 19, 35], "target": 98}
VALUES = {0.0, 0.01, 0.05, 0.06, 0.1, 1.05, 1.06, 1.1}


def reward(text: str, mode: str = "strict", **row: Any) -> float:
    return Countdown(mode)([row or ROW], [text])[0].reward


def answer(expression: str, mode: str = "strict", **row: Any) -> float:
    return reward(f"so</think>\n<answer>{expression}</answer>", mode, **row)


@pytest.mark.parametrize("mode", ["strict", "paper"])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0),
        ("44+19+35", 0),
        ("hm</think>", 0.01),
        ("<answer>1</answer>", 0.05),
        ("hm</think> <answer>1</answer>", 0.06),
        ("hm</think>\n<answer>1</answer>", 0.1),
        ("<answer>44+19+35</answer>", 1.05),
        ("hm</think> <answer>44+19+35</answer>", 1.06),
        ("hm</think>\n<answer>44+19+35</answer> done", 1.06),
        ("hm</think>\n<answer>44+19+35</answer>", 1.1),
        ("</think>\n<answer>44+19+35</answer>", 1.1),
    ],
)
def test_the_published_values(text: str, value: float, mode: str) -> None:
    assert reward(text, mode) == value


def test_no_other_value_can_be_reached() -> None:
    rng = random.Random(0)
    pieces = ["</think>", "\n", "<answer>", "</answer>", "44+19+35", "44", " ", "<think>"]
    texts = ["".join(rng.choices(pieces, k=rng.randint(1, 7))) for _ in range(20_000)]
    texts += [f"</think>\n<answer>{text}</answer>" for text in texts[:100]]
    found = {grade.reward for grade in Countdown()([ROW] * len(texts), texts)}
    assert found <= VALUES
    assert len(found) >= 6


@pytest.mark.parametrize("mode", ["strict", "paper"])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        # several answers: the last one counts, and the format stays whole
        ("</think>\n<answer>1</answer><answer>44+19+35</answer>", 1.1),
        ("</think>\n<answer>44+19+35</answer><answer>1</answer>", 0.1),
        ("</think>\n<answer>44+19+35</answer>\n", 1.1),  # one final line break
        ("</think>\n<answer>44+19+35</answer>\n\n", 1.06),
        ("</think>\n<answer>\n44+19+35</answer>", 0.1),  # a leading one
        ("</think>\n<answer>44+19+35\n</answer>", 1.1),  # a trailing one
        ("</think>\n<answer>44+19+35\n\n</answer>", 0.1),
        ("</think>\n<answer> (44 + 19) + 35 </answer>", 1.1),
        ("</think>\n<answer></answer>", 0.1),
        ("</think>\n<answer>44+19+35", 0.01),  # never closed
        ("</think>\n</answer>44+19+35<answer>", 0.01),
        ("</think>\n<answer>44+19+35<answer>44+19+35</answer>", 0.1),
        ("a</think>b</think>\n<answer>44+19+35</answer>", 1.1),
        ("a</think><answer>1</answer></think>\n<answer>44+19+35</answer>", 1.1),
    ],
)
def test_quirks_of_the_format(text: str, value: float, mode: str) -> None:
    assert reward(text, mode) == value


@pytest.mark.parametrize("mode", ["strict", "paper"])
@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("44+19+35", 1.1),
        ("35 + 19 + 44", 1.1),
        ("44+54", 0.1),  # other numbers
        ("98", 0.1),
        ("44+19+35+0", 0.1),
        ("44+19+35+35-35", 0.1),  # once each
        ("44+19-35", 0.1),
        ("044+19+35", 0.1),  # leading zeros
        ("44+19+35=98", 0.1),
        ("44.0+19+35", 0.1),
        ("44+19)+(35", 0.1),
        ("44(19)35", 0.1),  # multiplication is written
        ("44+19+35#", 0.1),
        ("\uff14\uff14+19+35", 0.1),  # digits of other scripts
        ("\u0664\u0664+19+35", 0.1),
        ("44\u00a0+19+35", 0.1),
        ("44/0+19+35", 0.1),
        ("44/(19-19)+35", 0.1),
    ],
)
def test_which_answers_are_right(expression: str, value: float, mode: str) -> None:
    assert answer(expression, mode) == value


@pytest.mark.parametrize(
    ("numbers", "target", "expression"),
    [
        ([7, 2, 1], 4, "7//2+1"),
        ([2, 3, 1], 9, "2**3+1"),
        ([5, 4], 9, "+5+4"),
        ([3, 3, 1], 1, "3**1//3"),
        ([0, 7], 7, "00+7"),
        ([100000, 100000, 1], 0, "1/100000/100000"),  # nearly
    ],
)
def test_what_only_the_published_grader_takes_is_counted(
    numbers: list[int], target: int, expression: str
) -> None:
    row = {"numbers": numbers, "target": target}
    text = f"</think>\n<answer>{expression}</answer>"
    (strict,), (paper,) = (Countdown(mode)([row], [text]) for mode in ("strict", "paper"))
    assert (strict.reward, paper.reward) == (0.1, 1.1)
    assert (strict.parts["answer"], paper.parts["answer"]) == (0.0, 1.0)
    assert strict.parts["disagrees"] == paper.parts["disagrees"] == 1.0


def test_where_both_agree_nothing_is_counted() -> None:
    (grade,) = Countdown()([ROW], ["</think>\n<answer>44+19+35</answer>"])
    assert grade.parts == {"format": 1.0, "answer": 1.0, "disagrees": 0.0}
    assert grade.failure is None


@pytest.mark.parametrize(
    ("target", "strict", "paper"), [(2.333333, 0.1 + 1, 1.1), ("7/3", 1.1, 1.1), (2.33, 0.1, 0.1)]
)
def test_a_target_that_is_not_whole_may_be_missed_by_a_little(target, strict, paper) -> None:
    assert answer("7/3", "strict", numbers=[7, 3], target=target) == strict
    assert answer("7/3", "paper", numbers=[7, 3], target=target) == paper


def test_a_row_may_call_its_numbers_nums() -> None:
    assert answer("1+2", nums=[2, 1], target=3) == 1.1


def published(text: str, numbers: list[int], target: int) -> float:
    """The published rules by the means of their authors: regular expressions and `eval`."""
    whole = f"<think>{text}"
    blocks = [("<think>.*?</think>", 0.01), ("<answer>.*?</answer>", 0.05)]
    form = sum(value for block, value in blocks if re.search(block, whole, re.DOTALL))
    if re.match(r"^<think>.*?</think>\n<answer>.*?</answer>$", whole, re.DOTALL):
        form = 0.1
    last = (re.findall("<answer>(.*?)</answer>", text, re.DOTALL) or [""])[-1]
    used = sorted(int(digits) for digits in re.findall(r"\d+", last))
    if not re.match(r"^[0-9+\-*/() ]+$", last) or used != sorted(numbers):
        return form
    try:
        return form + (abs(float(eval(last, {}, {})) - target) < 1e-5)
    except Exception:
        return form


def test_paper_mode_is_the_published_grader_on_any_text() -> None:
    rng = random.Random(1)
    signs = ["+", "-", "*", "/", "//", "**", "(", ")", " ", "", "\n", ""]
    blocks = ["</think>", "\n", "<answer>", "</answer>", "<think>", " so ", "{}", "{}"]
    layouts = [
        "so</think>\n<answer>{}</answer>",
        "so</think> <answer>{}</answer>",
        "<answer>{}</answer>",
    ]
    grader, seen = Countdown("paper"), set()
    for _ in range(30_000):
        numbers = [rng.randint(1, 4) for _ in range(3)]
        expression = "".join(f"{rng.choice(signs)}{n}{rng.choice(signs)}" for n in numbers)
        layout = rng.choice([*layouts, "".join(rng.choices(blocks, k=6))])
        text = layout.replace("{}", expression)
        row = {"numbers": numbers, "target": rng.randint(1, 9)}
        (grade,) = grader([row], [text])
        assert grade.reward == pytest.approx(published(text, **row), abs=1e-9), (text, row)
        seen.add(grade.reward)
    assert seen == VALUES


LONG = 2_000_000
ATTACKS = {
    "a tower of powers": "<answer>99**98**97</answer>",
    "many digits": f"<answer>{'9' * LONG}</answer>",
    "deep brackets": f"<answer>{'(' * LONG}1{')' * LONG}</answer>",
    "a row of minus signs": f"<answer>{'-' * LONG}99</answer>",
    "a long sum": f"<answer>{'99+' * (LONG // 3)}99</answer>",
    "answers that are not closed": "<answer>" * (LONG // 8),
    "empty answers": "<answer></answer>" * (LONG // 17),
    "thoughts that end and end": "</think>\n" * (LONG // 9),
    "thoughts that begin": "<think>" * (LONG // 7),
    "line breaks": f"<answer>{chr(10) * LONG}</answer>",
    "spaces": f"<answer>{' ' * LONG}</answer>",
    "digits of other scripts": f"<answer>{chr(0xFF19) * LONG}</answer>",
    "half a surrogate pair": "<answer>\ud800</answer>",
    "nothing": "\x00" * 100,
    "code": "<answer>__import__('os').abort()</answer>",
}


@pytest.mark.parametrize("mode", ["strict", "paper"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_costs_nothing_and_earns_nothing(attack: str, mode: str) -> None:
    start = time.process_time()
    value = reward(f"so</think>\n{ATTACKS[attack]}", mode, numbers=[99, 98, 97], target=5)
    assert time.process_time() - start < 0.5
    assert value <= 0.1


@pytest.mark.parametrize("mode", ["strict", "paper"])
def test_one_attack_among_3840_completions_slows_nothing_down(mode: str) -> None:
    row = {"numbers": [99, 98, 97], "target": 5}
    usual = ["let me see</think>\n<answer>99 - 98 + 97</answer>"] * 3840
    tower = "so</think>\n<answer>99**98**97</answer>"
    attacked = [*usual[:1000], tower, *usual[1001:]]

    def seconds(texts: list[str]) -> float:
        start = time.process_time()
        grades = Countdown(mode)([row] * len(texts), texts)
        assert [grade.reward for grade in grades] == [0.1] * 3840
        return time.process_time() - start

    assert seconds(attacked) < 2 * seconds(usual) + 0.5  # seconds; the tower alone is minutes


def test_parts_of_the_format_alone() -> None:
    assert format_of("x</think>\n<answer>y</answer>") == 1
    assert last_answer("<answer>a</answer> <answer>b</answer>") == "b"
    assert last_answer("<answer>a") is None
