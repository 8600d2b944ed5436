"""Conversations between two people: greetings, plans, questions about the world."""

from __future__ import annotations

from random import Random

from tools.corpus import words, world
from tools.corpus.text import a, cap, person

GREET = ("Good morning, {b}.", "Hello, {b}! How are you?", "Hi {b}.", "Good evening, {b}.")
GREET_BACK = (
    "Hello, {a}. I am fine, thank you.",
    "Good to see you, {a}.",
    "Hi {a}! I am well.",
    "Oh, hello. I am a little tired today.",
)
PLANS = (
    ("Where are you going?", "I am going to the {place}."),
    ("What are you doing today?", "I want to mend my {thing}. It is broken."),
    ("Shall we go to the {place} on {day}?", "Yes, let us go there at {n} o'clock."),
    ("Have you seen my {thing}?", "Yes, it is lying near the {place}."),
    ("Can you lend me {athing}?", "I am sorry, I have only one {thing}."),
    ("Will you come to my house on {day}?", "No, on {day} I have to work."),
    ("Who gave you that {colour} {thing}?", "{c} gave it to me."),
    ("Why are you so happy?", "Because {c} is coming to {town}."),
    ("How many {things} do you need?", "I need {n}, please."),
    ("What is in the box?", "There is {colour_a} {thing} in it."),
    ("Could you help me, please?", "Of course. What can I do for you?"),
    ("How much is the {thing}?", "It costs {n} coins."),
)
PARTING = ("See you on {day}.", "Goodbye, {b}.", "Thank you for your help.", "Take care, {b}.")
PARTING_BACK = ("Goodbye, {a}.", "You are welcome.", "Until then!", "Goodbye, and thank you.")


def document(rng: Random) -> str:
    """One conversation, in one of three layouts."""
    one = person(rng).name
    two = person(rng, [one]).name
    three = person(rng, [one, two]).name
    turns: list[str] = []
    slots = {"a": one, "b": two, "c": three}

    def say(*lines: str) -> None:
        thing = rng.choice(words.OBJECTS)
        colour = rng.choice(words.COLOURS)
        extra = {
            "place": rng.choice(words.PLACES),
            "thing": thing,
            "athing": a(thing),
            "things": thing + ("es" if thing.endswith("x") else "s"),
            "colour": colour,
            "colour_a": a(colour),
            "day": rng.choice("Monday Friday Sunday Tuesday".split()),
            "n": rng.choice(words.NUMBER_WORDS[2:11]),
            "town": rng.choice(words.TOWNS),
        }
        turns.extend(line.format(**slots, **extra) for line in lines)

    if rng.random() < 0.7:
        say(rng.choice(GREET), rng.choice(GREET_BACK))
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.35:
            ask, _, full = world.fact(rng)
            turns.extend(
                (
                    f"Tell me, {ask[0].lower()}{ask[1:]}" if rng.random() < 0.4 else ask,
                    full if rng.random() < 0.8 else "I do not know.",
                )
            )
        else:
            say(*rng.choice(PLANS))
    if rng.random() < 0.6:
        say(rng.choice(PARTING), rng.choice(PARTING_BACK))
    layout = rng.randrange(3)
    out = []
    for index, turn in enumerate(turns):
        name = (one, two)[index % 2]
        if layout == 0:
            out.append(f"{name}: {turn}")
        elif layout == 1:
            out.append(
                f'"{turn}" said {name}.'
                if not turn.endswith((".", "?", "!"))
                else f'"{turn[:-1] + "," if turn.endswith(".") else turn}" '
                f"{'asked' if turn.endswith('?') else 'said'} {name}."
            )
        else:
            out.append(f"- {cap(turn)}")
    return (" " if layout == 1 else "\n").join(out)
