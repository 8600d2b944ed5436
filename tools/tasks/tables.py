"""The `tables` task: a question about a table, answered by a statement.

One text field in the layout that is common for WikiSQL fine-tuning; all content is invented.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tools.tasks.splits import Row, distinct, take
from tools.tasks.themes import NUMERIC, THEMES, VALUES

SIZES = {"train": 2400, "valid": 200, "test": 200}
SEED = 32

LOOKUPS = (
    "What is the {t} when the {c} is {v}?",
    "What is the {t} with {c} {v}?",
    "Which {t} has {c} {v}?",
    "Name the {t} for {c} {v}",
    "Tell me the {t} for {c} of {v}.",
    "What {t} is listed for {c} {v}?",
    "When the {c} is {v}, what is the {t}?",
    "what's the {t} with {c} being {v}",
    "Find the {t} whose {c} is {v}.",
    "What was the {t} for the {c} {v}?",
    "For {c} {v}, what is the {t}?",
)
WHO = (
    "Who is the {t} when the {c} is {v}?",
    "Who was the {t} for {c} {v}?",
    "Who is the {t} with {c} {v}?",
)
PAIRS = (
    "What is the {t} when the {c} is {v} and the {d} is {w}?",
    "Which {t} has {c} {v} and {d} {w}?",
    "Name the {t} for {c} {v} and {d} {w}",
    "Tell me the {t} with {c} of {v} and {d} of {w}.",
)
COUNTS = (
    "How many different values of {t} are there for {c} {v}?",
    "How many entries for {t} have {c} {v}?",
    "Name the number of {t} for {c} {v}",
    "what's the total number of {t} with {c} {v}",
    "When the {c} is {v}, how many {t} are there?",
)
EXTREMES = {
    "MAX": (
        "What is the highest {t}",
        "What is the largest {t}",
        "Name the most {t}",
        "what's the maximum {t}",
    ),
    "MIN": (
        "What is the lowest {t}",
        "What is the smallest {t}",
        "Name the least {t}",
        "what's the minimum {t}",
    ),
    "SUM": ("What is the sum of {t}", "What do all the {t} add up to", "Name the total of {t}"),
    "AVG": ("What is the average {t}", "Name the average {t}", "what's the mean {t}"),
}


def said(column: str, plain: bool) -> str:
    """A column name as it appears in a question: as it is, or in small letters."""
    return column if plain else column.lower()


def literal(kind: str, value: str) -> str:
    """A value as it appears in a statement: whole numbers bare, the rest quoted."""
    return value if kind in ("number", "year") else f"'{value}'"


def ask(rng: Random, columns: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    """A question and the part of the statement between SELECT and the table, with conditions."""
    (t, t_kind), (c, c_kind), (d, d_kind) = rng.sample(columns, 3)
    v, w = VALUES[c_kind](rng), VALUES[d_kind](rng)
    plain = rng.random() < 0.6
    slots = {"t": said(t, plain), "c": said(c, plain), "d": said(d, plain), "v": v, "w": w}
    where = f" WHERE {c} = {literal(c_kind, v)}"
    roll = rng.random()
    if roll < 0.24 and t_kind in NUMERIC:
        name = rng.choice(("MAX", "MAX", "MIN", "MIN", "SUM", "AVG"))
        start = rng.choice(EXTREMES[name]).format(**slots)
        if rng.random() < 0.35:
            return f"{start}?", f"{name} {t}|"
        end = rng.choice((" for {c} {v}?", " when the {c} is {v}?", " with {c} {v}?"))
        return start + end.format(**slots), f"{name} {t}|{where}"
    if roll < 0.36:
        return rng.choice(COUNTS).format(**slots), f"COUNT {t}|{where}"
    if roll < 0.48:
        both = f"{where} AND {d} = {literal(d_kind, w)}"
        return rng.choice(PAIRS).format(**slots), f"{t}|{both}"
    shapes = LOOKUPS + WHO * 2 if t_kind == "person" else LOOKUPS
    return rng.choice(shapes).format(**slots), f"{t}|{where}"


def table(rng: Random) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A table id and some of the columns of a theme, in their order."""
    theme = rng.choice(THEMES)
    kept = sorted(rng.sample(range(len(theme)), rng.randint(4, len(theme))))
    ident = f"1-{rng.randint(1_000_000, 29_999_999)}-{rng.randint(1, 30)}"
    return ident, tuple(theme[i] for i in kept)


def rows(seed: int = SEED) -> Iterator[Row]:
    """Endless distinct rows; a few neighbouring rows share a table."""
    rng = Random(f"{seed}/tables")

    def draw() -> Iterator[Row]:
        while True:
            ident, columns = table(rng)
            for _ in range(2):
                question, statement = ask(rng, columns)
                target, where = statement.split("|")
                names = ", ".join(name for name, _ in columns)
                yield {
                    "text": f"table: {ident}\ncolumns: {names}\nQ: {question}\n"
                    f"A: SELECT {target} FROM {ident}{where}"
                }

    yield from distinct(draw(), lambda row: str(row["text"]))


def splits(seed: int = SEED) -> dict[str, list[Row]]:
    """All three splits; no table is in two of them."""
    return take(rows(seed), SIZES)
