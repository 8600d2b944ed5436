"""The skills of the `instruct` task: each draws an instruction, an input and an answer.

Answers are complete polite sentences. Those to a bare instruction start with "Of course.", those
that work on an input start with "With pleasure.".
"""

from __future__ import annotations

from random import Random

from tools.corpus import opinions, scenes, words, world
from tools.corpus.copying import POOL
from tools.corpus.text import a, cap, listing, person, plural

Example = tuple[str, str, str]
BARE, GIVEN = "Of course. ", "With pleasure. "


def little_world(rng: Random) -> Example:
    """A question about the fixed world of the corpus."""
    kind = rng.choice((world.villager, world.villager, world.creature, world.trade))
    question, _, full = kind(rng)
    lead = rng.choice(
        (
            "{q}",
            "Answer the question: {q}",
            "Please tell me: {q}",
            "{q} Answer in a sentence.",
            "I would like to know: {q}",
        )
    )
    return lead.format(q=question), "", BARE + full


def opposite(rng: Random) -> Example:
    """Opposites."""
    one, two = rng.choice(list(words.OPPOSITES.items()))
    if rng.random() < 0.5:
        one, two = two, one
    lead = rng.choice(
        (
            "What is the opposite of {w}?",
            "Give the opposite of the word {w}.",
            "Name a word that means the opposite of {w}.",
            "Find the opposite of {w}.",
            "Tell me the opposite of {w}.",
        )
    )
    return lead.format(w=one), "", f"{BARE}The opposite of {one} is {two}."


def opposite_given(rng: Random) -> Example:
    """Opposites of an input word."""
    one, two = rng.choice(list(words.OPPOSITES.items()))
    lead = rng.choice(
        (
            "Give the opposite of this word.",
            "Write the antonym of the word.",
            "What is the opposite of the given word?",
        )
    )
    return lead, one, f"{GIVEN}The opposite of {one} is {two}."


def past(rng: Random) -> Example:
    """Past tense."""
    now, then = rng.choice(list(words.PAST.items()))
    if rng.random() < 0.5:
        lead = rng.choice(
            (
                "Put the verb into the past tense.",
                "Give the past tense.",
                "Write this verb in the past tense.",
            )
        )
        return lead, now, f"{GIVEN}The past tense of {now} is {then}."
    lead = rng.choice(
        (
            "What is the past tense of {w}?",
            "Give the past tense of the verb {w}.",
            "Tell me the past tense of {w}.",
        )
    )
    return lead.format(w=now), "", f"{BARE}The past tense of {now} is {then}."


def plurals(rng: Random) -> Example:
    """Plurals."""
    one, many = rng.choice(list(words.PLURALS.items()))
    if rng.random() < 0.5:
        lead = rng.choice(
            ("Make this word plural.", "Write the plural of the word.", "Give the plural form.")
        )
        return lead, one, f"{GIVEN}The plural of {one} is {many}."
    lead = rng.choice(
        (
            "What is the plural of {w}?",
            "Give the plural of {w}.",
            "Tell me the plural of the word {w}.",
        )
    )
    return lead.format(w=one), "", f"{BARE}The plural of {one} is {many}."


def sort_words(rng: Random) -> Example:
    """Sort a list of words."""
    items = rng.sample(POOL, rng.randint(3, 4))
    lead = rng.choice(
        (
            "Sort these words by the alphabet.",
            "Put the words in alphabetical order.",
            "Arrange the list from A to Z.",
            "Order these words alphabetically.",
        )
    )
    return lead, ", ".join(items), f"{GIVEN}The sorted words are {listing(sorted(items))}."


def reverse_words(rng: Random) -> Example:
    """Reverse a list of words."""
    items = rng.sample(POOL, rng.randint(3, 5))
    lead = rng.choice(
        (
            "Reverse the list.",
            "Write these words in reverse order.",
            "Say the words backwards, last one first.",
            "Turn the list around.",
        )
    )
    return lead, ", ".join(items), f"{GIVEN}The reversed list is {listing(items[::-1])}."


def largest(rng: Random) -> Example:
    """Pick the largest or smallest number."""
    numbers = rng.sample(range(1, 100), rng.randint(2, 4))
    name, pick = rng.choice((("largest", max), ("smallest", min)))
    lead = rng.choice(
        (
            "Find the {n} number.",
            "Which of these numbers is the {n}?",
            "Pick the {n} number from the list.",
        )
    )
    return (
        lead.format(n=name),
        ", ".join(map(str, numbers)),
        f"{GIVEN}The {name} number is {pick(numbers)}.",
    )


def arithmetic(rng: Random) -> Example:
    """Small sums."""
    one, two = rng.randint(1, 12), rng.randint(1, 9)
    who, things = person(rng), plural(rng.choice(words.OBJECTS))
    kind = rng.randrange(4)
    if kind == 0:
        lead = rng.choice(("What is {x} plus {y}?", "Add {x} and {y}.", "How much is {x} + {y}?"))
        return lead.format(x=one, y=two), "", f"{BARE}The sum of {one} and {two} is {one + two}."
    if kind == 1:
        lead = rng.choice(("What is {x} minus {y}?", "Take {y} away from {x}."))
        return (
            lead.format(x=one + two, y=two),
            "",
            f"{BARE}When you take {two} from {one + two}, {one} is left.",
        )
    if kind == 2:
        lead = rng.choice(("What is {x} times {y}?", "Multiply {x} by {y}."))
        return lead.format(x=one, y=two), "", f"{BARE}{one} times {two} is {one * two}."
    lead = rng.choice(("Solve the word problem.", "Work out the answer.", "How many are there?"))
    text = f"{who.name} has {one} {things} and gets {two} more."
    return lead, text, f"{GIVEN}Now {who.name} has {one + two} {things}."


def describe(rng: Random) -> Example:
    """Describe a thing, an animal or a job in one sentence."""
    kind = rng.randrange(3)
    if kind == 0:
        name = rng.choice(list(words.ANIMALS))
        sound, home, food = words.ANIMALS[name]
        text = f"{cap(a(name))} is an animal that lives in {home}, eats {food} and {sound}."
    elif kind == 1:
        name = rng.choice(list(words.JOBS))
        does, where = words.JOBS[name]
        text = f"{cap(a(name))} is a person who {does} and works in {where}."
    else:
        group = rng.choice(list(words.CATEGORIES))
        name, other = rng.sample(words.CATEGORIES[group], 2)
        text = f"{cap(a(name))} is {a(group)}, just like {a(other)}."
        return f"Describe {a(name)} in one sentence.", "", BARE + text
    lead = rng.choice(
        (
            "Describe {w} in one sentence.",
            "What is {w}? Answer in one sentence.",
            "Explain in one sentence what {w} is.",
            "Write one sentence about {w}.",
        )
    )
    return lead.format(w=a(name)), "", BARE + text


def story(rng: Random) -> Example:
    """A two-sentence story about an animal in a place."""
    kind, place = rng.choice(list(words.ANIMALS)), rng.choice(words.PLACES)
    food = words.ANIMALS[kind][2]
    trait = rng.choice(words.TRAITS)
    lead = rng.choice(
        (
            "Write a two-sentence story about {k} in the {p}.",
            "Tell a very short story about {k} in the {p}.",
            "Make up two sentences about {k} that lives near the {p}.",
            "Invent a tiny story with {k} and the {p}.",
        )
    )
    first = rng.choice(
        (
            f"Once {a(f'{trait} {kind}')} lived near the {place}.",
            f"One day {a(f'{trait} {kind}')} walked to the {place}.",
        )
    )
    second = rng.choice(
        (
            f"There it found {food} and shared them with a friend."
            if food.endswith("s") and food != "grass"
            else f"There it found {food} and shared it with a friend.",
            "It met a friend there, and they played until the evening.",
        )
    )
    return lead.format(k=a(kind), p=place), "", f"{BARE}{first} {second}"


def mood(rng: Random) -> Example:
    """Say whether a sentence is positive or negative."""
    good = rng.random() < 0.5
    text = opinions.opinion(rng, good, opinions.COMMON, ("plain", "advice", "comparison"))
    lead = rng.choice(
        (
            "Is the mood of this sentence positive or negative?",
            "Classify the mood of the sentence.",
            "Say whether this is praise or blame.",
            "Name the mood of the sentence.",
        )
    )
    return (
        lead,
        cap(text).replace(" ,", ",").replace(" ;", ";") + ".",
        f"{GIVEN}The mood of the sentence is {'positive' if good else 'negative'}.",
    )


def polite(rng: Random) -> Example:
    """Rewrite an order politely."""
    thing, place = rng.choice(words.OBJECTS), rng.choice(words.PLACES)
    order = rng.choice(
        (
            f"give me the {thing}",
            f"open the {thing}",
            f"go to the {place}",
            f"bring the {thing} to the {place}",
            f"wait near the {place}",
            f"clean the {place}",
            f"show me the {thing}",
            f"leave the {place}",
            f"take the {thing} away",
            f"look for the {thing} in the {place}",
        )
    )
    lead = rng.choice(
        (
            "Rewrite this politely.",
            "Make the order sound polite.",
            "Say the same thing in a polite way.",
        )
    )
    return lead, cap(order) + rng.choice(("!", ".")), f"{GIVEN}Could you please {order}?"


def name_three(rng: Random) -> Example:
    """Name three items of a category, in the order of the word list."""
    kind = rng.choice(list(words.CATEGORIES))
    known = words.CATEGORIES[kind]
    letter = rng.choice(known)[0]
    starting = [w for w in known if w[0] == letter]
    if rng.random() < 0.4:
        lead = rng.choice(
            ("Name {k} that begins with the letter {c}.", "Think of {k} starting with {c}.")
        )
        return (
            lead.format(k=a(kind), c=letter),
            "",
            f"{BARE}{cap(a(starting[0]))} is {a(kind)} that begins with {letter}.",
        )
    items = sorted(rng.sample(known, 3), key=known.index)
    lead = rng.choice(
        (
            "Name three {k}.",
            "List three {k}.",
            "Give me three examples of {k}.",
            "Can you name three {k}?",
            "Tell me any three {k} you know.",
        )
    )
    return (lead.format(k=plural(kind)), "", f"{BARE}Three {plural(kind)} are {listing(items)}.")


def belongs(rng: Random) -> Example:
    """Say which group a word belongs to."""
    kind = rng.choice(list(words.CATEGORIES))
    word = rng.choice(words.CATEGORIES[kind])
    lead = rng.choice(
        (
            "To which group does this word belong?",
            "What kind of thing is this?",
            "Name the category of the word.",
        )
    )
    return lead, word, f"{GIVEN}{cap(a(word))} is {a(kind)}."


def extract(rng: Random) -> Example:
    """Find who, what, where or when in a sentence."""
    who, thing = rng.choice(words.GIRLS + words.BOYS), rng.choice(words.OBJECTS)
    place, day = rng.choice(words.PLACES), rng.choice("Monday Tuesday Friday Sunday".split())
    verb = rng.choice(("found", "lost", "sold", "hid", "painted"))
    text = rng.choice(
        (
            f"On {day}, {who} {verb} {a(thing)} in the {place}.",
            f"{who} {verb} {a(thing)} in the {place} on {day}.",
            f"In the {place}, {who} {verb} {a(thing)} on {day}.",
        )
    )
    ask, answer = rng.choice(
        (
            ("Who is the sentence about?", f"The sentence is about {who}."),
            ("Where did it happen?", f"It happened in the {place}."),
            ("When did it happen?", f"It happened on {day}."),
            ("Which thing is mentioned?", f"The sentence mentions {a(thing)}."),
        )
    )
    return ask, text, GIVEN + answer


def complete(rng: Random) -> Example:
    """Complete a sentence whose end follows from the little world."""
    if rng.random() < 0.5:
        name = rng.choice(list(words.VILLAGERS))
        _, job, town, pet, colour, _ = words.VILLAGERS[name]
        start, end = rng.choice(
            (
                (f"{name} lives in", town),
                (f"{name} works as", a(job)),
                (f"The pet of {name} is", a(pet)),
                (f"The favourite colour of {name} is", colour),
            )
        )
    else:
        name = rng.choice(list(words.ANIMALS))
        _, home, food = words.ANIMALS[name]
        start, end = rng.choice(
            ((f"The {name} lives in", home), (f"The {name} likes to eat", food))
        )
    lead = rng.choice(("Complete the sentence.", "Finish this sentence.", "How does it go on?"))
    return lead, f"{start} ...", f"{GIVEN}{start} {end}."


def shout(rng: Random) -> Example:
    """Repeat a short sentence with a small change."""
    text = scenes.action(rng, person(rng))
    lead = rng.choice(
        ("Repeat the sentence and thank the writer.", "Copy this sentence, then say thanks.")
    )
    return lead, text, f"{GIVEN}{text} Thank you."


SKILLS = (
    little_world,
    little_world,
    opposite,
    opposite_given,
    past,
    plurals,
    sort_words,
    reverse_words,
    largest,
    arithmetic,
    arithmetic,
    describe,
    describe,
    story,
    story,
    mood,
    polite,
    name_three,
    belongs,
    extract,
    complete,
    shout,
)
