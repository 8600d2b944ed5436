"""The same question answered shortly or at length, in several layouts."""

from __future__ import annotations

from random import Random

from tools.corpus import words, world
from tools.corpus.text import a

LEADS = (
    "Well, that is a good question. ",
    "Let me think about it for a moment. ",
    "I am glad that you ask. ",
    "That is easy. ",
    "Many people ask that. ",
    "",
    "",
)
TAILS = (
    " I learned that at school.",
    " Everybody in {town} knows that.",
    " My friend {name} told me so.",
    " At least that is what I have heard.",
    " I hope that this helps you.",
    " It has always been like that, as far as I know.",
    "",
    "",
)


def long_answer(rng: Random, full: str) -> str:
    """An answer in a roundabout way."""
    tail = rng.choice(TAILS).format(town=rng.choice(words.TOWNS), name=rng.choice(words.GIRLS))
    return rng.choice(LEADS) + full + tail


def document(rng: Random) -> str:
    """A few questions, each with a short or a long answer, or both."""
    style = rng.randrange(4)
    out = []
    for _ in range(rng.randint(2, 6)):
        ask, short, full = world.fact(rng)
        wordy = long_answer(rng, full)
        if style == 0:
            out.append(f"Question: {ask}\nShort answer: {short}\nLong answer: {wordy}")
        elif style == 1:
            out.append(f"User: {ask}\nAssistant: {wordy if rng.random() < 0.75 else full}")
        elif style == 2:
            wish = rng.choice(("Answer in one word", "Be brief", "Answer shortly"))
            if " " in short and wish == "Answer in one word":
                wish = "Answer shortly"
            out.append(f"{ask} {wish}. {short}")
        else:
            name = rng.choice(words.BOYS)
            talker = rng.choice(("talkative", "quiet"))
            said = wordy if talker == "talkative" else short + "."
            out.append(f'{name} is {a(talker)} boy. "{ask}" "{said}"')
    return "\n".join(out)
