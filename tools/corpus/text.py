"""Small helpers for building sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from tools.corpus import words

T = TypeVar("T")


def a(noun: str) -> str:
    """Put the right indefinite article in front of a noun phrase."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def cap(text: str) -> str:
    """Make the first letter a capital and leave the rest alone."""
    return text[:1].upper() + text[1:]


def listing(items: Sequence[str], last: str = "and") -> str:
    """Join items as in 'a, b and c'."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def plural(noun: str) -> str:
    """Plural of a noun, irregular ones from the word list."""
    if noun in words.PLURALS:
        return words.PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def maybe(rng: Random, text: str, chance: float = 0.5) -> str:
    """Return the text with the given chance, else nothing."""
    return text if rng.random() < chance else ""


@dataclass(frozen=True)
class Person:
    """Somebody in a text, with the pronouns that go with the name."""

    name: str
    subj: str
    obj: str
    poss: str
    kind: str

    @property
    def they(self) -> str:
        """Subject pronoun with a capital."""
        return cap(self.subj)


def person(rng: Random, avoid: Sequence[str] = ()) -> Person:
    """Draw a boy or a girl whose name is not yet taken."""
    girl = rng.random() < 0.5
    name = rng.choice([n for n in (words.GIRLS if girl else words.BOYS) if n not in avoid])
    if girl:
        return Person(name, "she", "her", "her", "girl")
    return Person(name, "he", "him", "his", "boy")


def animal(rng: Random, avoid: Sequence[str] = ()) -> Person:
    """Draw an animal with a name."""
    kind = rng.choice([k for k in words.ANIMALS if k not in avoid])
    someone = person(rng, avoid)
    return Person(someone.name, someone.subj, someone.obj, someone.poss, kind)
