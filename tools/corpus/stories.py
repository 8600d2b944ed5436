"""Short stories with a plot: somebody wants something, something is in the way, it ends well.

A story is drawn as a state (who, where, what, helper, obstacle) and told in stages; the same
state answers the questions that sometimes follow the story.
"""

from __future__ import annotations

from random import Random

from tools.corpus import plots, words
from tools.corpus.text import a, animal, cap, person


def draw_state(rng: Random) -> dict[str, str]:
    """Draw who the story is about and everything that will matter in it."""
    hero = animal(rng) if rng.random() < 0.3 else person(rng)
    friend = animal(rng, [hero.name, hero.kind]) if rng.random() < 0.5 else person(rng, [hero.name])
    place, other = rng.sample(words.PLACES, 2)
    thing, gift = rng.sample(words.OBJECTS, 2)
    colour = rng.choice(words.COLOURS)
    look = rng.choice([colour, colour, rng.choice(words.LOOKS), rng.choice(words.SIZES)])
    return {
        "Hero": hero.name,
        "he": hero.subj,
        "him": hero.obj,
        "his": hero.poss,
        "He": hero.they,
        "kind": hero.kind,
        "akind": a(hero.kind),
        "His": cap(hero.poss),
        "Friend": friend.name,
        "fhe": friend.subj,
        "fhim": friend.obj,
        "fhis": friend.poss,
        "fHe": friend.they,
        "fkind": friend.kind,
        "afkind": a(friend.kind),
        "place": place,
        "other": other,
        "thing": thing,
        "gift": gift,
        "look": look,
        "alook": a(look),
        "agift": a(gift),
        "athing": a(thing),
        "colour": colour,
        "trait": rng.choice(words.TRAITS),
        "ftrait": rng.choice(words.TRAITS),
        "food": rng.choice("bread soup apples cheese cake nuts berries pancakes honey pie".split()),
        "weather": rng.choice(words.WEATHER),
        "time": rng.choice(words.TIMES),
        "town": rng.choice(words.TOWNS),
        "n": rng.choice(words.NUMBER_WORDS[2:9]),
        "atrait": "",
        "time_l": "one day",
        "day": rng.choice("Monday Tuesday Friday Saturday Sunday".split()),
    }


OPENINGS = (
    "Once there was {atrait} {kind} named {Hero}. {He} lived in a house near the {place}.",
    "{Hero} was {atrait} {kind} who lived in {town}.",
    "{Hero} the {kind} lived close to the {place}. Everybody said that {he} was very {trait}.",
    "In {town} there lived {atrait} {kind} called {Hero}.",
    "There once was {akind} named {Hero}. {He} was {trait}, and {his} best friend was {Friend} "
    "the {fkind}.",
    "Far away, near an old {place}, lived {atrait} {kind} whose name was {Hero}.",
    "{Hero} and {Friend} were friends. {Hero} was {akind}, and {Friend} was {afkind}.",
)
ENDINGS = (
    "From that day on, {Hero} and {Friend} were the best of friends.",
    "That night {Hero} slept well and dreamed of the {place}.",
    "{Hero} never forgot that day.",
    '"Thank you," said {Hero}. "I could not have done it alone."',
    "And so {Hero} learned that it is good to ask for help.",
    "{Hero} went home, tired but happy.",
    "After that, {Hero} was not so {trait} any more, but {he} was just as happy.",
    "They laughed, and then they ate some {food} together.",
    "Everybody in {town} talked about it for {n} days.",
    "{Hero} smiled. It had been a good day after all.",
)


def tell(rng: Random, state: dict[str, str]) -> tuple[str, list[tuple[str, str, str]]]:
    """Tell one story; returns the text and (question, short, long answer) triples."""
    state["atrait"] = a(state["trait"])
    state["time_l"] = state["time"][0].lower() + state["time"][1:]
    state["cap_agift"] = cap(state["agift"])
    state["n_cap"] = cap(state["n"])
    plot = rng.choice(plots.PLOTS)
    parts = [rng.choice(OPENINGS)]
    if rng.random() < 0.4:
        parts.append(rng.choice(plots.HABITS))
    parts += [rng.choice(stage) for stage in plot.stages]
    parts.append(rng.choice(ENDINGS))
    sentences = [part.format(**state) for part in parts]
    cut = rng.randint(1, 2)
    text = " ".join(sentences[:cut]) + ("\n" if rng.random() < 0.4 else " ")
    text += " ".join(sentences[cut:])
    asks = [
        ("Who is the story about?", state["Hero"], f"The story is about {state['Hero']}."),
        (
            f"What kind of creature is {state['Hero']}?"
            if state["kind"] not in ("girl", "boy")
            else f"Is {state['Hero']} a girl or a boy?",
            a(state["kind"]),
            f"{state['Hero']} is {a(state['kind'])}.",
        ),
        (
            f"Who is {state['Hero']}'s friend?",
            state["Friend"],
            f"{state['Hero']}'s friend is {state['Friend']}.",
        ),
    ]
    asks += [tuple(part.format(**state) for part in ask) for ask in plot.asks]
    return text, asks


TITLES = (
    "The {look} {thing}",
    "{Hero} and {Friend}",
    "A day at the {place}",
    "{Hero}'s {thing}",
    "The {kind} and the {fkind}",
)


def document(rng: Random) -> str:
    """One story, sometimes with a title, sometimes with questions and answers about it."""
    state = draw_state(rng)
    text, asks = tell(rng, state)
    if rng.random() < 0.2:
        text = cap(rng.choice(TITLES).format(**state)) + "\n\n" + text
    if rng.random() < 0.45:
        text += "\n" + questions(rng, asks)
    return text


def questions(rng: Random, asks: list[tuple[str, str, str]]) -> str:
    """Some of the questions with short or long answers in one of several layouts."""
    chosen = rng.sample(asks, k=min(len(asks), rng.randint(1, 4)))
    long = rng.random() < 0.5
    layout = rng.choice(("Q: {q}\nA: {a}", "Question: {q}\nAnswer: {a}", "{q} {a}", "{q}\n{a}"))
    lines = []
    for ask, short, full in chosen:
        answer = full if long or layout.startswith("{q}") else cap(short)
        lines.append(layout.format(q=ask, a=answer))
    return "\n".join(lines)
