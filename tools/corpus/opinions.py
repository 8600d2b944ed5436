"""Opinion sentences about films, books, meals and places, with the opinion they express.

Used by the corpus (`reviews.py`) with the COMMON words and the plainer shapes, and by the
`reviews` task with all words and all shapes; so the task has words that the base never saw judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

DOMAINS = {
    "film": "plot acting music dialogue ending camerawork cast humour editing story".split(),
    "book": "prose plot style story characters ending dialogue opening chapters mystery".split(),
    "meal": "soup bread service dessert sauce fish menu coffee salad roast".split(),
    "hotel": "room view garden service breakfast pool staff bed lobby bathroom".split(),
}
PLURAL = {"characters", "chapters"}
THINGS = {
    "film": ("film", "movie", "comedy", "drama", "thriller", "documentary", "sequel"),
    "book": ("book", "novel", "tale", "biography", "memoir", "mystery"),
    "meal": ("meal", "dinner", "lunch", "restaurant", "bistro", "kitchen"),
    "hotel": ("hotel", "inn", "resort", "guesthouse", "place", "lodge"),
}


@dataclass(frozen=True)
class Lexicon:
    """Words that praise and words that blame."""

    good: tuple[str, ...]
    bad: tuple[str, ...]
    good_nouns: tuple[str, ...]
    bad_nouns: tuple[str, ...]


COMMON = Lexicon(
    tuple(
        "good wonderful lovely charming clever funny warm fresh delightful beautiful excellent "
        "perfect moving sweet pleasant fine brilliant nice".split()
    ),
    tuple(
        "bad awful boring dull stupid cold stale ugly horrible poor weak sad dirty silly "
        "unpleasant bland slow cheap".split()
    ),
    tuple("joy charm wit beauty care love fun magic".split()),
    tuple("boredom mess noise trouble waste dirt pain nonsense".split()),
)
RARE = Lexicon(
    tuple(
        "graceful inventive sincere gripping tender witty radiant assured vivid thoughtful "
        "crisp generous engaging memorable polished heartfelt luminous refreshing".split()
    ),
    tuple(
        "tedious clumsy hollow murky shallow careless tired lifeless grating soggy pretentious "
        "muddled bleak sloppy overlong forgettable tasteless rude".split()
    ),
    tuple("grace invention sparkle tenderness insight flavour spirit elegance".split()),
    tuple("cliches tedium clutter gloom filler confusion vanity apathy".split()),
)
ALL = Lexicon(
    COMMON.good + RARE.good,
    COMMON.bad + RARE.bad,
    COMMON.good_nouns + RARE.good_nouns,
    COMMON.bad_nouns + RARE.bad_nouns,
)
DEGREES = ("", "", "", "really ", "very ", "quite ", "rather ", "so ", "truly ")


class Speaker:
    """Draws opinion sentences from a lexicon with an explicit generator."""

    def __init__(self, rng: Random, lexicon: Lexicon) -> None:
        self.rng = rng
        self.lex = lexicon
        self.domain = rng.choice(list(DOMAINS))
        self.thing = rng.choice(THINGS[self.domain])

    def adj(self, good: bool) -> str:
        """A judging adjective."""
        return self.rng.choice(self.lex.good if good else self.lex.bad)

    def noun(self, good: bool) -> str:
        """A judging noun."""
        return self.rng.choice(self.lex.good_nouns if good else self.lex.bad_nouns)

    def subject(self) -> tuple[str, str]:
        """What is judged, and the verb that agrees with it."""
        aspect = self.rng.choice(DOMAINS[self.domain])
        if self.rng.random() < 0.4:
            return f"the {self.thing}", "is"
        return f"the {aspect}", "are" if aspect in PLURAL else "is"

    def plain(self, good: bool) -> str:
        """A clause that says it directly."""
        subj, be = self.subject()
        deg = self.rng.choice(DEGREES)
        return self.rng.choice(
            (
                f"{subj} {be} {deg}{self.adj(good)}",
                f"{subj} {be} {self.adj(good)} and {self.adj(good)}",
                f"{a(self.adj(good))} {self.thing}",
                f"{subj} {be} full of {self.noun(good)}",
                f"{a(self.adj(good))} , {self.adj(good)} {self.thing}",
                f"{subj} could hardly be more {self.adj(good)}",
            )
        )

    def negated(self, good: bool) -> str:
        """A clause that says it by denying the contrary."""
        subj, be = self.subject()
        other = self.adj(not good)
        return self.rng.choice(
            (
                f"{subj} {be} not {other} at all",
                f"{subj} {be} anything but {other}",
                f"{subj} {be} never {other}",
                f"{subj} {be} far from {other}",
                f"there is nothing {other} about {subj}",
                f"nobody could call {subj} {other}",
                f"{subj} {be} without any {self.noun(not good)}",
                f"not a trace of {self.noun(not good)} in {subj}",
            )
        )

    def contrast(self, good: bool) -> str:
        """Two clauses against each other; the main one decides."""
        one, be1 = self.subject()
        two, be2 = self.subject()
        minor, major = self.adj(not good), self.adj(good)
        if good is False and self.rng.random() < 0.25:
            return f"{one} wants to be {minor} , but it never gets there"
        return self.rng.choice(
            (
                f"{one} {be1} {minor} , but {two} {be2} {major} in the end",
                f"although {one} {be1} {minor} , {two} {be2} {major}",
                f"starts {minor} but ends {major}",
                f"what looks {minor} at first turns out to be {major}",
                f"i expected {a(minor)} {self.thing} and got {a(major)} one",
                f"{one} {be1} {major} , even if {two} {be2} a little {minor}",
                f"for all its {self.noun(not good)} , {two} {be2} {major}",
            )
        )

    def advice(self, good: bool) -> str:
        """What the writer did or would do."""
        t = self.thing
        return self.rng.choice(
            (
                f"i would see this {t} again tomorrow",
                f"do not miss this {t}",
                f"i did not want this {t} to end",
                "we are going to come back soon",
                f"i told all my friends to try this {t}",
                f"{a(t)} that stays with you for days",
                "worth every penny and every minute",
                f"we could not stop smiling about this {t}",
            )
            if good
            else (
                f"save your money and skip this {t}",
                f"i could not wait for this {t} to end",
                f"i want my time back after this {t}",
                "we are never going to come back",
                f"i told all my friends to stay away from this {t}",
                f"{a(t)} that you forget before you are home",
                "not worth the money , not worth the time",
                f"we left this {t} early and angry",
            )
        )

    def comparison(self, good: bool) -> str:
        """Better or worse than something."""
        subj, be = self.subject()
        than = self.rng.choice(
            (
                "i expected",
                "people say",
                "the last one",
                "the poster promises",
                "my friends had told me",
                "anything else this year",
            )
        )
        word = self.rng.choice(
            ("better", "much better", "far better", "stronger")
            if good
            else ("worse", "much worse", "far worse", "weaker")
        )
        return f"{subj} {be} {word} than {than}"


def a(noun: str) -> str:
    """Indefinite article in front of a phrase."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


PLAIN_SHAPES = ("plain", "plain", "plain", "advice", "comparison")
ALL_SHAPES = ("plain", "negated", "negated", "contrast", "contrast", "advice", "comparison")


def opinion(rng: Random, good: bool, lexicon: Lexicon, shapes: tuple[str, ...]) -> str:
    """One opinion sentence of the wanted polarity, without end mark."""
    speaker = Speaker(rng, lexicon)
    shape = rng.choice(shapes)
    text = getattr(speaker, shape)(good)
    if shape in ("plain", "negated", "comparison") and rng.random() < 0.3:
        extra = rng.choice(shapes)
        if extra != "contrast":
            text += rng.choice((" , and ", " ; ")) + getattr(speaker, extra)(good)
    if rng.random() < 0.1:
        text = rng.choice(("to be honest , ", "in my opinion , ", "all in all , ")) + text
    return text
