"""Statements about tables (SELECT, FROM, WHERE, COUNT ...) in manuals, notes and scripts.

The layout of the `tables` task (a `table:` line, a `columns:` line, `Q:` and `A:`) is never used.
"""

from __future__ import annotations

from random import Random

from tools.corpus import copying, lookups, words

AGGREGATES = {
    "COUNT": ("the number of {c}", "how many {c} there are", "the count of {c}"),
    "MAX": ("the highest {c}", "the largest {c}", "the maximum of {c}"),
    "MIN": ("the lowest {c}", "the smallest {c}", "the minimum of {c}"),
    "SUM": ("the sum of {c}", "all {c} added up", "the total of {c}"),
    "AVG": ("the average {c}", "the mean of {c}", "the average of {c}"),
}
COLUMN_POOL = sorted(
    {c for _, cs in lookups.TOPICS.values() for c in cs}
    | {k for k, _ in lookups.TOPICS.values()}
    | {"city", "size", "owner", "team", "day", "room", "grade", "kind", "number"}
)


def column(rng: Random) -> str:
    """A column name: a word, two words, or made up; sometimes with capitals."""
    name = rng.choice(
        (
            rng.choice(COLUMN_POOL),
            rng.choice(COLUMN_POOL),
            f"{rng.choice(COLUMN_POOL)} {rng.choice(COLUMN_POOL)}",
            copying.nonce(rng),
        )
    )
    return name.capitalize() if rng.random() < 0.4 else name


def table_name(rng: Random) -> str:
    """A table name: a topic, a made-up word, or a number with dashes."""
    return rng.choice(
        (
            rng.choice(list(lookups.TOPICS)),
            f"{rng.choice(list(lookups.TOPICS))}_{rng.randint(1, 99)}",
            copying.nonce(rng),
            f"{rng.randint(2, 9)}-{rng.randint(1000, 99999999)}-{rng.randint(1, 40)}",
        )
    )


def condition(rng: Random, name: str) -> tuple[str, str]:
    """A condition in words and as a statement."""
    if rng.random() < 0.2:
        number = rng.randint(1, 2030)
        sign, said = rng.choice((("=", "is"), (">", "is more than"), ("<", "is less than")))
        return f"the {name} {said} {number}", f"{name} {sign} {number}"
    val = copying.value(rng)
    return f"the {name} is {val}", f"{name} = '{val}'"


def item(rng: Random) -> tuple[str, str, str, list[str]]:
    """What is wanted in words, the statement, the table and its columns."""
    columns = list(dict.fromkeys(column(rng) for _ in range(rng.randint(3, 6))))
    table = table_name(rng)
    chosen = columns[:]
    rng.shuffle(chosen)
    target, *others = chosen
    want, call = f"the {target}", target
    if rng.random() < 0.35:
        name = rng.choice(list(AGGREGATES))
        want = rng.choice(AGGREGATES[name]).format(c=target)
        call = f"{name} {target}" if rng.random() < 0.75 else f"{name}({target})"
    wheres = [condition(rng, c) for c in others[: rng.choice((0, 1, 1, 1, 1, 2))]]
    said = f"{want} where " + " and ".join(w for w, _ in wheres) if wheres else want
    statement = f"SELECT {call} FROM {table}"
    if wheres:
        statement += " WHERE " + " AND ".join(s for _, s in wheres)
    return said, statement, table, columns


def asked(rng: Random, said: str) -> str:
    """What is wanted, as a question."""
    if said.startswith("how many"):
        said = said.replace("there are", "are there", 1)
        return f"{said[0].upper()}{said[1:]}?"
    if " where the " in said and rng.random() < 0.7:
        want, rest = said.split(" where the ", 1)
        return rng.choice(
            (
                f"What is {want} if the {rest}?",
                f"What is {want} when the {rest}?",
                f"Tell me {want} with {rest.replace(' is ', ' ')}.",
                f"Which is {want} whose {rest}?",
                f"When the {rest}, what is {want}?",
            )
        )
    return rng.choice((f"What is {said}?", f"Show {said}.", f"Find {said}."))


def document(rng: Random) -> str:
    """A few statements in one surrounding."""
    style = rng.randrange(8)
    out = []
    for _ in range(rng.randint(2, 5)):
        said, statement, table, columns = item(rng)
        if style == 0:
            out.append(f"-- {said}\n{statement};")
        elif style == 1:
            out.append(
                f"The columns of {table} are {', '.join(columns)}. To find {said}, write "
                f"{statement};"
            )
        elif style == 2:
            out.append(f"{statement};\nThis gives {said}, from {table}.")
        elif style == 3:
            name = rng.choice(words.GIRLS)
            out.append(f'"I need {said}," said {name}. So she typed: {statement}')
        elif style == 4:
            out.append(f"{table} ({', '.join(columns)})\n> {statement}\n-- {said}")
        elif style == 5:
            out.append(
                f"In {table} we keep {', '.join(columns)}. {asked(rng, said)} Use {statement}."
            )
        elif style == 6:
            out.append(f"[{table}] [{', '.join(columns)}]\n[{asked(rng, said)}]\n[{statement}]")
        else:
            out.append(f"Please give me {said}.\n{table}: {', '.join(columns)}\n    {statement}")
    return "\n".join(out)
