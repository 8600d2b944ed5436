"""Sequences of unrelated words, names and codes that come back word for word.

Nothing in them can be guessed but what was there before, so a model learns early to look back
and copy. They enter in the second stage of pretraining.
"""

from __future__ import annotations

from random import Random

from tools.corpus import copying, words

WORDS = sorted(
    set(copying.POOL)
    | {w for pair in (*words.OPPOSITES.items(), *words.PAST.items()) for w in pair}
    | {w for pair in words.PLURALS.items() for w in pair}
    | set(words.PLACES + words.TOWNS + words.GIRLS + words.BOYS + words.SURNAMES + words.TRAITS)
)


def piece(rng: Random) -> str:
    """One unpredictable piece of text."""
    roll = rng.random()
    if roll < 0.55:
        return rng.choice(WORDS)
    if roll < 0.75:
        return copying.nonce(rng)
    return copying.value(rng)


def document(rng: Random) -> str:
    """A sequence, then the whole of it or parts of it again."""
    glue = rng.choice((" ", " ", " ", ", ", "\n", " | "))
    items = [piece(rng) for _ in range(rng.randint(5, 30))]
    turn = rng.choice(("\n", "\n", "\n\n", " / ", ". "))
    lines = [glue.join(items)]
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.5:
            lines.append(glue.join(items))
        else:
            start = rng.randrange(len(items) - 2)
            lines.append(glue.join(items[start : start + rng.randint(3, 15)]))
    return turn.join(lines)
