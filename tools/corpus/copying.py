"""Texts in which names, numbers and lists come back: copying, sorting, reversing, filling in."""

from __future__ import annotations

from random import Random

from tools.corpus import words
from tools.corpus.text import listing

SYLLABLES = (
    "ba be bi bo bu da de di do du fa fe fi fo ka ke ki ko ku la le li lo lu ma me mi mo mu na ne "
    "ni no nu pa pe pi po ra re ri ro ru sa se si so su ta te ti to tu va ve vi vo wa we wi zo za"
).split()
POOL = sorted(
    {w for group in words.CATEGORIES.values() for w in group}
    | set(words.OBJECTS)
    | set(words.ANIMALS)
)


def nonce(rng: Random) -> str:
    """A made-up word, so that only copying helps."""
    word = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))
    return word + rng.choice(("", "", "n", "r", "s", "x", "ng", "ck"))


def code(rng: Random) -> str:
    """A made-up code such as a ticket number."""
    shape = rng.randrange(5)
    if shape == 0:
        return f"{rng.randint(1, 9)}-{rng.randint(1000, 99999999)}-{rng.randint(1, 30)}"
    if shape == 1:
        return f"{rng.choice('ABCDEFGHJKLMNPRSTUVWXYZ')}{rng.randint(10, 9999)}"
    if shape == 2:
        return f"{rng.randint(1, 31)}/{rng.randint(1, 12)}/{rng.randint(1900, 2030)}"
    if shape == 3:
        return f"{rng.randint(1, 999)}.{rng.randint(0, 99)}"
    return "".join(rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(rng.randint(3, 4)))


def value(rng: Random) -> str:
    """Something to copy: a name, a code, a number, a made-up word."""
    return rng.choice(
        (
            lambda: f"{rng.choice(words.GIRLS + words.BOYS)} {rng.choice(words.SURNAMES)}",
            lambda: code(rng),
            lambda: nonce(rng),
            lambda: nonce(rng).capitalize(),
            lambda: str(rng.randint(1, 9999)),
            lambda: rng.choice(words.TOWNS),
            lambda: f"{nonce(rng).capitalize()} {rng.choice(words.SURNAMES)}",
        )
    )()


def pairs(rng: Random) -> str:
    """A list of keys and values, then some of them asked again."""
    keys = (
        rng.sample(POOL, rng.randint(3, 7))
        if rng.random() < 0.5
        else [value(rng) for _ in range(rng.randint(3, 7))]
    )
    table = {key: value(rng) for key in keys}
    sep = rng.choice((": ", " = ", " -> ", " is "))
    lines = [f"{key}{sep}{val}" for key, val in table.items()]
    again = rng.sample(list(table.items()), rng.randint(2, len(table)))
    return "\n".join(
        [
            *lines,
            rng.choice(("", "Again:", "Once more")),
            *(f"{key}{sep}{val}" for key, val in again),
        ]
    )


def repeat(rng: Random) -> str:
    """A sequence said twice, or said again in another order."""
    items = [
        value(rng) if rng.random() < 0.5 else rng.choice(POOL) for _ in range(rng.randint(3, 6))
    ]
    glue = rng.choice((" ", ", ", " ; ", " / "))
    line = glue.join(items)
    low = glue.join(i.lower() for i in items)
    return rng.choice(
        (
            f"{line}\n{line}",
            f"Copy: {line}\nCopy: {line}",
            f'He said "{line}" and I wrote "{line}".',
            f"Lower case: {line} becomes {low}.",
            f"Write {low} as {line}.",
            f"List: {line}\nBackwards: {glue.join(items[::-1])}",
            f"First: {items[0]}. Last: {items[-1]}. Words: {line}.",
        )
    )


def ordering(rng: Random) -> str:
    """Words put in order."""
    items = rng.sample(POOL, rng.randint(3, 5))
    return rng.choice(
        (
            f"The words {listing(items)} in order are {listing(sorted(items))}.",
            f"Sort: {', '.join(items)}\nSorted: {', '.join(sorted(items))}",
            f"Reverse: {', '.join(items)}\nReversed: {', '.join(items[::-1])}",
            f'The first word of "{" ".join(items)}" is {items[0]}, and the last is {items[-1]}.',
            f"{' '.join(items)} has {words.NUMBER_WORDS[len(items)]} words.",
        )
    )


def extract(rng: Random) -> str:
    """A sentence and the parts of it that were asked for."""
    name = rng.choice(words.GIRLS + words.BOYS)
    thing, place, day = (
        rng.choice(words.OBJECTS),
        rng.choice(words.PLACES),
        rng.choice("Monday Tuesday Wednesday Thursday Friday Sunday".split()),
    )
    verb = rng.choice("found lost bought sold saw painted hid".split())
    text = rng.choice(
        (
            f"On {day}, {name} {verb} a {thing} in the {place}.",
            f"{name} {verb} a {thing} in the {place} on {day}.",
            f"In the {place}, {name} {verb} a {thing} on {day}.",
        )
    )
    asks = [f"Who: {name}", f"What: a {thing}", f"Where: in the {place}", f"When: on {day}"]
    return text + "\n" + "\n".join(rng.sample(asks, rng.randint(2, 4)))


def document(rng: Random) -> str:
    """Several copying texts of one or more kinds."""
    makers = (pairs, repeat, ordering, extract)
    if rng.random() < 0.3:
        return pairs(rng)
    return "\n".join(rng.choice(makers)(rng) for _ in range(rng.randint(2, 5)))
