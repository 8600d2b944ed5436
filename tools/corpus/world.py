"""Facts of a small fixed world: villagers, animals, jobs, opposites, plurals, past tense."""

from __future__ import annotations

from random import Random

from tools.corpus import words
from tools.corpus.text import a, cap, listing, plural

Fact = tuple[str, str, str]
"""A question, its short answer and its answer as a sentence."""


def villager(rng: Random) -> Fact:
    """A fact about one of the named villagers."""
    name = rng.choice(list(words.VILLAGERS))
    sex, job, town, pet, colour, food = words.VILLAGERS[name]
    they = "she" if sex == "f" else "he"
    return rng.choice(
        (
            (f"What is the job of {name}?", job, f"{name} is {a(job)}."),
            (f"Who is the {job} of {town}?", name, f"The {job} of {town} is {name}."),
            (f"Where does {name} live?", town, f"{name} lives in {town}."),
            (f"What pet does {name} the {job} have?", a(pet), f"{name} has {a(pet)}."),
            (f"Who has {a(pet)} as a pet?", name, f"{name} has {a(pet)}."),
            (f"What is the favourite colour of {name}?", colour, f"{name} likes {colour} best."),
            (f"What does {name} like to eat?", food, f"{cap(they)} likes to eat {food}."),
        )
    )


def creature(rng: Random) -> Fact:
    """What an animal says, where it lives, what it eats."""
    kind = rng.choice(list(words.ANIMALS))
    sound, home, food = words.ANIMALS[kind]
    return rng.choice(
        (
            (f"What sound does {a(kind)} make?", f"it {sound}", f"{cap(a(kind))} {sound}."),
            (f"Where does {a(kind)} live?", f"in {home}", f"{cap(a(kind))} lives in {home}."),
            (f"What does {a(kind)} eat?", food, f"{cap(a(kind))} eats {food}."),
        )
    )


def opposite(rng: Random) -> Fact:
    """Opposites, both ways round."""
    one, two = rng.choice(list(words.OPPOSITES.items()))
    if rng.random() < 0.5:
        one, two = two, one
    ask = rng.choice(
        (
            f"What is the opposite of {one}?",
            f'What is the opposite of "{one}"?',
            f"Which word means the opposite of {one}?",
        )
    )
    return ask, two, f"The opposite of {one} is {two}."


def number_of(rng: Random) -> Fact:
    """Plurals."""
    one, many = rng.choice(list(words.PLURALS.items()))
    ask = rng.choice(
        (
            f"What is the plural of {one}?",
            f"One {one}, two what?",
            f"How do you say more than one {one}?",
        )
    )
    return ask, many, f"The plural of {one} is {many}."


def tense(rng: Random) -> Fact:
    """Past tense."""
    now, then = rng.choice(list(words.PAST.items()))
    ask = rng.choice(
        (
            f"What is the past tense of {now}?",
            f'What is the past of "{now}"?',
            f"Today they {now}. What did they do yesterday?",
        )
    )
    return ask, then, f"The past tense of {now} is {then}."


def category(rng: Random) -> Fact:
    """Which group a word belongs to, or members of a group."""
    kind = rng.choice(list(words.CATEGORIES))
    members = rng.sample(words.CATEGORIES[kind], 3)
    return rng.choice(
        (
            (f"What is {a(members[0])}?", a(kind), f"{cap(a(members[0]))} is {a(kind)}."),
            (
                f"Name three {plural(kind)}.",
                listing(members),
                f"Three {plural(kind)} are {listing(members)}.",
            ),
            (f"Name {a(kind)}.", members[0], f"{cap(members[0])} is {a(kind)}."),
            (f"Is {a(members[0])} {a(kind)}?", "Yes", f"Yes, {a(members[0])} is {a(kind)}."),
            not_member(rng, kind),
        )
    )


def not_member(rng: Random, kind: str) -> Fact:
    """A word that does not belong to a group."""
    other = rng.choice([k for k in words.CATEGORIES if k != kind])
    thing = rng.choice([w for w in words.CATEGORIES[other] if w not in words.CATEGORIES[kind]])
    return f"Is {a(thing)} {a(kind)}?", "No", f"No, {a(thing)} is {a(other)}."


def trade(rng: Random) -> Fact:
    """What people with a job do and where."""
    job = rng.choice(list(words.JOBS))
    does, where = words.JOBS[job]
    return rng.choice(
        (
            (f"What does {a(job)} do?", does, f"{cap(a(job))} {does}."),
            (f"Where does {a(job)} work?", f"in {where}", f"{cap(a(job))} works in {where}."),
            (f"Who {does}?", a(job), f"{cap(a(job))} {does}."),
        )
    )


KINDS = (villager, villager, creature, opposite, opposite, number_of, tense, category, trade)


def fact(rng: Random) -> Fact:
    """One fact of any kind."""
    return rng.choice(KINDS)(rng)


def portrait(rng: Random) -> str:
    """A paragraph about one villager."""
    name = rng.choice(list(words.VILLAGERS))
    sex, job, town, pet, colour, food = words.VILLAGERS[name]
    they, their = ("She", "Her") if sex == "f" else ("He", "His")
    does, where = words.JOBS[job]
    rest = [
        f"{they} {does} and works in {where}.",
        f"{they} has {a(pet)}.",
        f"{their} pet is {a(pet)}, and it {words.ANIMALS[pet][0]}.",
        f"{their} favourite colour is {colour}.",
        f"{they} likes {colour} best.",
        f"{they} likes to eat {food}.",
        f"{they} lives in {town}.",
    ]
    first = rng.choice(
        (
            f"{name} is the {job} of {town}.",
            f"{name} lives in {town}.",
            f"The {job} of {town} is called {name}.",
        )
    )
    return " ".join([first, *rng.sample(rest, rng.randint(3, 5))])


def document(rng: Random) -> str:
    """A list of facts: as questions and answers, as sentences, or as a portrait."""
    style = rng.randrange(6)
    if style == 0:
        return "\n".join(portrait(rng) for _ in range(rng.randint(1, 3)))
    if style == 1:
        one_kind = rng.choice(KINDS)
        facts = list(dict.fromkeys(one_kind(rng) for _ in range(rng.randint(4, 10))))
    else:
        facts = [fact(rng) for _ in range(rng.randint(3, 10))]
    if style == 2:
        return " ".join(full for _, _, full in facts)
    layout = rng.choice(("Q: {q}\nA: {a}", "Question: {q}\nAnswer: {a}", "{q} {a}", "{q}\n{a}"))
    short = rng.random() < 0.5
    return "\n".join(
        layout.format(q=ask, a=cap(brief) + rng.choice((".", "")) if short else full)
        for ask, brief, full in facts
    )
