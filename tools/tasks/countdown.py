"""The `countdown` task: numbers, a target, and an expression that makes it of all of them.

Two grades. `countdown` is the published one: 3 or 4 numbers of 1 to 99, a whole target of 10 to
100, all four operations. `countdown-easy` is for the bundled base: 3 numbers of 1 to 20, a whole
target of 1 to 50, plus and minus only, a prompt of one line, and no thought.

No two rows of a grade have the same numbers, in whatever order, and the same target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from tools.tasks.splits import Row, distinct, take

SIZES = {"train": 1600, "valid": 100, "test": 400}
SEED = 47
BINDS = {"+": 1, "-": 1, "*": 2, "/": 2}
ATOM = 3

Made = tuple[int, str, int]
"""A value, an expression of it, and how strongly its last operation binds."""


def rows(seed: int = SEED) -> Iterator[Row]:
    """Endless distinct rows of the published grade, half of them with four numbers."""
    rng = Random(f"{seed}/countdown")

    def draw() -> Iterator[Row]:
        while True:
            count, made = rng.choice((3, 4)), None
            while made is None or not 10 <= made[0] <= 100:
                numbers = [rng.randint(1, 99) for _ in range(count)]
                made = _combine(rng, numbers)
            yield {"numbers": numbers, "target": made[0], "solution": made[1]}

    return distinct(draw(), _problem)


def easy_rows(seed: int = SEED) -> Iterator[Row]:
    """Distinct rows of the easy grade. Solutions keep the order of the numbers where they can."""
    rng = Random(f"{seed}/countdown-easy")

    def draw() -> Iterator[Row]:
        while True:
            numbers = [rng.randint(1, 20) for _ in range(3)]
            signed = [number * rng.choice((1, -1)) for number in numbers]
            target = sum(signed)
            if not 1 <= target <= 50:
                continue
            first = next(i for i, number in enumerate(signed) if number > 0)
            ordered = [signed[first], *signed[:first], *signed[first + 1 :]]
            rest = [f"{'+' if number > 0 else '-'} {abs(number)}" for number in ordered[1:]]
            expression = " ".join([str(ordered[0]), *rest])
            shown = " ".join(map(str, numbers))
            yield {
                "numbers": numbers,
                "target": target,
                "context": f"[{shown}] {target}\n<think>",
                "solution": f"</think>\n<answer>{expression}</answer>",
            }

    return distinct(draw(), _problem)


def splits(seed: int = SEED) -> dict[str, list[Row]]:
    """All three splits of the published grade."""
    return take(rows(seed), SIZES)


def easy_splits(seed: int = SEED) -> dict[str, list[Row]]:
    """All three splits of the easy grade."""
    return take(easy_rows(seed), SIZES)


def _problem(row: Row) -> str:
    """What makes two rows the same problem."""
    numbers = row["numbers"]
    assert isinstance(numbers, list)
    return f"{sorted(numbers)} <> {row['target']}"


def _combine(rng: Random, numbers: Sequence[int]) -> tuple[int, str] | None:
    """Join two of what is left, at random, until one is left; None for a division with a rest."""
    left: list[Made] = [(number, str(number), ATOM) for number in numbers]
    while len(left) > 1:
        (a, a_text, a_binds), (b, b_text, b_binds) = (
            left.pop(rng.randrange(len(left))) for _ in range(2)
        )
        sign = rng.choice("+-*/")
        if sign == "/" and (b == 0 or a % b):
            return None
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[sign]
        binds = BINDS[sign]
        if a_binds < binds:
            a_text = f"({a_text})"
        if b_binds < binds or (b_binds == binds and sign in "-/"):
            b_text = f"({b_text})"
        left.append((value, f"{a_text} {sign} {b_text}", binds))
    return left[0][:2]
