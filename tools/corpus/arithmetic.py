"""Sums, comparisons, expressions and number puzzles."""

from __future__ import annotations

from random import Random

from tools.corpus import words
from tools.corpus.text import listing, person, plural


def expression(rng: Random, size: int, top: int = 12) -> tuple[str, int, list[int]]:
    """A random expression with whole positive results; returns text, value, numbers used."""
    while True:
        numbers = [rng.randint(1, top) for _ in range(size)]
        text, val = str(numbers[0]), numbers[0]
        flat = True  # the text so far has no plus or minus outside brackets
        for number in numbers[1:]:
            sign = rng.choice("++--**/")
            if sign in "*/" and not flat:
                text, flat = f"({text})", True
            if sign == "+":
                val += number
            elif sign == "-":
                val -= number
            elif sign == "*":
                val *= number
            elif number and val % number == 0:
                val //= number
            else:
                break
            flat = flat and sign in "*/"
            text = f"{text} {sign} {number}"
            if val < 0 or val > 200:
                break
        else:
            return text, val, numbers


def sum_line(rng: Random) -> str:
    """One sum, difference, product or quotient."""
    top = rng.choice((9, 9, 20, 50, 100))
    one, two = rng.randint(0, top), rng.randint(0, top)
    small, other = rng.randint(1, 12), rng.randint(1, 12)
    return rng.choice(
        (
            f"{one} + {two} = {one + two}",
            f"{one + two} - {one} = {two}",
            f"{small} * {other} = {small * other}",
            f"{small * other} / {small} = {other}",
        )
    )


def compare_line(rng: Random) -> str:
    """A comparison."""
    one, two, three = rng.sample(range(100), 3)
    return rng.choice(
        (
            f"{one} {'>' if one > two else '<'} {two}",
            f"The larger of {one} and {two} is {max(one, two)}.",
            f"Which is smaller, {one} or {two}? {min(one, two)}",
            f"The largest of {one}, {two} and {three} is {max(one, two, three)}.",
            f"{one}, {two}, {three} sorted: {', '.join(map(str, sorted((one, two, three))))}",
            f"After {one} comes {one + 1}.",
            f"Before {one + 1} comes {one}.",
        )
    )


def word_line(rng: Random) -> str:
    """A small sum told as a story."""
    who = person(rng)
    things = plural(rng.choice(words.OBJECTS))
    one, two = rng.randint(2, 12), rng.randint(1, 9)
    return rng.choice(
        (
            f"{who.name} has {one} {things} and gets {two} more. Now {who.subj} has {one + two} "
            f"{things}.",
            f"{who.name} had {one + two} {things} and gave {two} away. {who.they} has {one} left.",
            f"{one} {things} and {two} {things} are {one + two} {things}.",
            f"{who.name} buys {two} bags with {one} {things} each. "
            f"That makes {one * two} {things}.",
            f"{words.NUMBER_WORDS[min(one, 10)]} plus {words.NUMBER_WORDS[two]} is "
            f"{words.NUMBER_WORDS[min(one, 10) + two]}.",
        )
    )


def chain_line(rng: Random) -> str:
    """An expression with several numbers."""
    text, val, _ = expression(rng, rng.randint(3, 4))
    return f"{text} = {val}"


def puzzle_line(rng: Random) -> str:
    """Make a number out of given numbers."""
    text, val, numbers = expression(rng, rng.choice((2, 3, 3, 3, 4)))
    given = numbers[:]
    rng.shuffle(given)
    listed = listing([str(n) for n in given])
    return rng.choice(
        (
            f"Make {val} out of {listed}: {text} = {val}",
            f"How can you make {val} with the numbers {listed}? {text} = {val}",
            f"You have {listed}. You want {val}. Take {text}.",
            f"With {listed} one can make {val}, because {text} = {val}.",
            f"Numbers: {', '.join(map(str, given))}. Goal: {val}. Way: {text}",
        )
    )


KINDS = (
    sum_line,
    sum_line,
    compare_line,
    word_line,
    chain_line,
    chain_line,
    puzzle_line,
    puzzle_line,
)


def document(rng: Random) -> str:
    """Some lines of one kind or of all kinds."""
    if rng.random() < 0.5:
        kind = rng.choice(KINDS)
        return "\n".join(kind(rng) for _ in range(rng.randint(4, 14)))
    return "\n".join(rng.choice(KINDS)(rng) for _ in range(rng.randint(4, 10)))
