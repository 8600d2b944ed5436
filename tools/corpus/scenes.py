"""Descriptive sentences and short paragraphs: a place, a person, a thing, a day."""

from __future__ import annotations

from random import Random

from tools.corpus import words
from tools.corpus.text import Person, a, animal, cap, listing, person, plural

PREPS = ("in", "near", "behind", "next to", "in front of", "on the way to")
VERBS = (
    "sat",
    "slept",
    "waited",
    "stood",
    "sang",
    "played",
    "worked",
    "was walking",
    "was reading",
    "was sleeping",
    "was looking for {thing}",
    "found {thing}",
    "carried {thing}",
    "lost {thing}",
    "painted {thing}",
    "talked to {friend}",
    "met {friend}",
    "waved to {friend}",
    "saw {friend}",
)
MANNERS = (
    "slowly",
    "quietly",
    "happily",
    "with a smile",
    "all day",
    "for an hour",
    "every morning",
    "until the evening",
    "again and again",
    "without a word",
)

FEELINGS = "happy sad tired proud lonely calm angry glad".split()


def phrase(rng: Random) -> str:
    """A thing with an adjective or two."""
    thing = rng.choice(words.OBJECTS)
    look = rng.choice((rng.choice(words.COLOURS), rng.choice(words.LOOKS), rng.choice(words.SIZES)))
    if rng.random() < 0.25:
        look = f"{rng.choice(words.SIZES)} {rng.choice(words.COLOURS)}"
    return a(f"{look} {thing}")


def action(rng: Random, who: Person) -> str:
    """A sentence about somebody doing something somewhere."""
    name = who.name if rng.random() < 0.6 else f"{who.name} the {who.kind}"
    if rng.random() < 0.3:
        name = f"the {rng.choice(words.TRAITS)} {who.kind}"
    verb = rng.choice(VERBS).format(thing=phrase(rng), friend=person(rng, [who.name]).name)
    where = f"{rng.choice(PREPS)} the {rng.choice(words.PLACES)}"
    shape = rng.randrange(5)
    if shape == 0:
        return cap(f"{where}, {name} {verb}.")
    if shape == 1:
        return f"{rng.choice(words.TIMES)}, {name} {verb} {where}."
    if shape == 2:
        return cap(f"{name} {verb} {where} {rng.choice(MANNERS)}.")
    if shape == 3:
        return cap(f"{name}, who was {rng.choice(words.TRAITS)}, {verb} {where}.")
    return cap(f"{name} {verb} {where}.")


def follow(rng: Random, who: Person) -> str:
    """A sentence that goes on about the same somebody with a pronoun."""
    return rng.choice(
        (
            f"{who.they} had {phrase(rng)} in {who.poss} hand.",
            f"{who.they} was thinking of {who.poss} {rng.choice(('mother', 'brother', 'friend'))}.",
            f"{who.they} wanted to go to the {rng.choice(words.PLACES)}.",
            f"Nobody had told {who.obj} the way.",
            f"{who.they} liked {plural(rng.choice(words.OBJECTS))} more than anything else.",
            f"{who.they} felt {rng.choice(FEELINGS)}.",
            f"In the evening {who.subj} went home.",
        )
    )


def thing_place(rng: Random) -> str:
    """A sentence that describes a thing or a place."""
    place = rng.choice(words.PLACES)
    things = [phrase(rng) for _ in range(3)]
    return rng.choice(
        (
            f"There was {things[0]} {rng.choice(PREPS)} the {place}.",
            f"The {place} was full of {plural(rng.choice(words.OBJECTS))}.",
            f"On the table there were {listing(things)}.",
            f"{cap(things[0])} is bigger than {things[1]}."
            if rng.random() < 0.3
            else f"The {place} of {rng.choice(words.TOWNS)} is very "
            f"{rng.choice(('old', 'quiet'))}.",
            f"The {rng.choice(words.OBJECTS)} was {rng.choice(words.LOOKS[:6])} and "
            f"{rng.choice(words.COLOURS)}.",
            f"{rng.choice(words.WEATHER)}, and the {place} was {rng.choice(('empty', 'quiet'))}.",
        )
    )


def document(rng: Random) -> str:
    """A few descriptive sentences around one person or animal."""
    who = animal(rng) if rng.random() < 0.4 else person(rng)
    out = [action(rng, who)]
    for _ in range(rng.randint(1, 6)):
        out.append(rng.choice((follow, follow, lambda r, _: thing_place(r), action))(rng, who))
    return " ".join(out)
