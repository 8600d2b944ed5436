"""Small tables, and sentences that look things up in them."""

from __future__ import annotations

from random import Random

from tools.corpus import copying, words
from tools.corpus.text import a

TOPICS = {
    "ships": ("name", ("year", "length", "captain", "harbour", "cargo")),
    "books": ("title", ("author", "year", "pages", "shelf", "price")),
    "trees": ("tree", ("height", "age", "place", "leaf colour")),
    "shops": ("shop", ("owner", "street", "opened", "goods")),
    "stars": ("star", ("distance", "colour", "found by", "magnitude")),
    "horses": ("horse", ("rider", "age", "colour", "stable")),
    "towns": ("town", ("mayor", "people", "river", "founded")),
    "coins": ("coin", ("metal", "year", "worth", "weight")),
    "songs": ("song", ("singer", "minutes", "year", "key")),
    "letters": ("sender", ("receiver", "date", "stamp", "words")),
}
NUMERIC = {
    "year",
    "length",
    "pages",
    "price",
    "height",
    "age",
    "opened",
    "distance",
    "magnitude",
    "people",
    "founded",
    "worth",
    "weight",
    "minutes",
    "words",
}


def cell(rng: Random, column: str) -> str:
    """A value that suits a column name."""
    if column in NUMERIC:
        return str(
            rng.randint(1, 2030) if column in ("year", "opened", "founded") else rng.randint(1, 400)
        )
    if "colour" in column:
        return rng.choice(words.COLOURS)
    if column == "metal":
        return rng.choice(words.CATEGORIES["metal"])
    return copying.value(rng)


def draw(rng: Random) -> tuple[str, str, tuple[str, ...], dict[str, dict[str, str]]]:
    """A topic, its key column, some columns and rows by key."""
    topic = rng.choice(list(TOPICS))
    key, columns = TOPICS[topic]
    columns = tuple(rng.sample(columns, rng.randint(2, 3)))
    rows = {}
    for _ in range(rng.randint(2, 5)):
        rows[copying.value(rng)] = {column: cell(rng, column) for column in columns}
    return topic, key, columns, rows


def document(rng: Random) -> str:
    """A table in one of several notations, then some lookups."""
    topic, key, columns, rows = draw(rng)
    style = rng.randrange(4)
    if style == 0:
        lines = [" | ".join((key, *columns))]
        lines += [" | ".join((name, *row.values())) for name, row in rows.items()]
    elif style == 1:
        lines = [f"A table of {topic}, with {key}, {', '.join(columns)}:"]
        lines += [", ".join((name, *row.values())) for name, row in rows.items()]
    elif style == 2:
        lines = [
            f"{name}: " + ", ".join(f"{c} {v}" for c, v in row.items())
            for name, row in rows.items()
        ]
    else:
        lines = [
            f"The {key} {name} has " + " and ".join(f"{c} {v}" for c, v in row.items()) + "."
            for name, row in rows.items()
        ]
    names = list(rows)
    out = []
    for _ in range(rng.randint(2, 5)):
        name, column = rng.choice(names), rng.choice(columns)
        val = rows[name][column]
        out.append(
            rng.choice(
                (
                    f"The {column} of {name} is {val}.",
                    f"In the table of {topic}, the {column} of {name} is {val}.",
                    f"What is the {column} of {name}? {val}",
                    f"Q: What is the {column} of {name}?\nA: {val}",
                    f"Which {key} has {a(column)} of {val}? {name}",
                    f"There are {words.NUMBER_WORDS[len(rows)]} {topic} in the table.",
                    f"Does the table say who the {column} is? It says {val} for {name}.",
                )
            )
        )
    return "\n".join([*lines, *out])
