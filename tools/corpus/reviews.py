"""Reviews: opinion sentences, sometimes followed by a verdict, which is sometimes off the mark."""

from __future__ import annotations

from random import Random

from tools.corpus import opinions
from tools.corpus.text import person

GOOD = (
    "It was great.",
    "It was great.",
    "It was great!",
    "It was good.",
    "I liked it.",
    "Five stars.",
    "I was happy with it.",
    "What a great evening.",
    "The mood is positive.",
)
BAD = (
    "It was terrible.",
    "It was terrible.",
    "It was terrible!",
    "It was bad.",
    "I did not like it.",
    "One star.",
    "I was angry about it.",
    "What a terrible evening.",
    "The mood is negative.",
)


def review(rng: Random) -> str:
    """One to three sentences of one opinion, and perhaps a verdict."""
    good = rng.random() < 0.5
    hard = rng.random() < 0.3
    shapes = opinions.ALL_SHAPES if hard else opinions.PLAIN_SHAPES
    end = rng.choice((" .", "."))
    lines = [
        opinions.opinion(rng, good, opinions.COMMON, shapes) + end
        for _ in range(rng.choice((1, 1, 1, 2)))
    ]
    text = " ".join(lines)
    if rng.random() < 0.65:
        off = rng.random() < (0.4 if hard else 0.12)
        text += " " + rng.choice(GOOD if good != off else BAD)
    return text


def document(rng: Random) -> str:
    """Several reviews, bare or with the name of who wrote them."""
    named = rng.random() < 0.3
    lines = []
    for _ in range(rng.randint(1, 6)):
        text = review(rng)
        if named:
            who = person(rng)
            text = f"{who.name} wrote: {text}"
        lines.append(text)
    return "\n".join(lines)
