"""Invented tables for the `tables` task: column names with the type of their values."""

from __future__ import annotations

from random import Random

from tools.corpus import copying, words

# (column, type); the types are the keys of VALUES below.
Columns = tuple[tuple[str, str], ...]
THEMES: tuple[Columns, ...] = (
    (
        ("Player", "person"),
        ("Team", "team"),
        ("Position", "role"),
        ("Goals", "number"),
        ("Nationality", "land"),
        ("Height", "measure"),
        ("Debut", "year"),
    ),
    (
        ("Title", "title"),
        ("Author", "person"),
        ("Pages", "number"),
        ("Publisher", "firm"),
        ("Year", "year"),
        ("Language", "land"),
    ),
    (
        ("Ship", "title"),
        ("Captain", "person"),
        ("Shipyard", "town"),
        ("Laid down", "date"),
        ("Launched", "date"),
        ("Crew", "number"),
        ("Status", "state"),
    ),
    (
        ("Episode", "number"),
        ("Title", "title"),
        ("Directed by", "person"),
        ("Written by", "person"),
        ("Air date", "date"),
        ("Viewers", "decimal"),
    ),
    (
        ("County", "town"),
        ("Population", "number"),
        ("Area (km)", "decimal"),
        ("Mayor", "person"),
        ("Founded", "year"),
        ("Region", "side"),
    ),
    (
        ("Round", "number"),
        ("Circuit", "town"),
        ("Date", "date"),
        ("Pole position", "person"),
        ("Race winner", "person"),
        ("Winning team", "team"),
    ),
    (
        ("Station", "code"),
        ("Frequency", "decimal"),
        ("City", "town"),
        ("Format", "genre"),
        ("Owner", "firm"),
        ("Opened", "year"),
    ),
    (
        ("Season", "year"),
        ("Champion", "team"),
        ("Runner-up", "team"),
        ("Score", "score"),
        ("Stadium", "title"),
        ("Attendance", "number"),
    ),
    (
        ("School", "title"),
        ("Location", "town"),
        ("Mascot", "beast"),
        ("Enrollment", "number"),
        ("Colours", "colour"),
        ("Head coach", "person"),
    ),
    (
        ("Mountain", "word"),
        ("Elevation", "number"),
        ("Range", "word"),
        ("Climbed", "year"),
        ("Climber", "person"),
        ("Side", "side"),
    ),
    (
        ("Train", "code"),
        ("From", "town"),
        ("To", "town"),
        ("Departs", "clock"),
        ("Platform", "number"),
        ("Driver", "person"),
    ),
    (
        ("Song", "title"),
        ("Singer", "person"),
        ("Label", "firm"),
        ("Length", "clock"),
        ("Weeks", "number"),
        ("Genre", "genre"),
    ),
    (
        ("Horse", "word"),
        ("Jockey", "person"),
        ("Trainer", "person"),
        ("Odds", "score"),
        ("Weight", "measure"),
        ("Stable", "town"),
    ),
    (
        ("Model", "code"),
        ("Maker", "firm"),
        ("Engine", "word"),
        ("Power", "number"),
        ("Built", "year"),
        ("Colour", "colour"),
    ),
    (
        ("Bird", "beast"),
        ("Latin name", "word"),
        ("Habitat", "place"),
        ("Wingspan", "measure"),
        ("Eggs", "number"),
        ("Seen by", "person"),
    ),
    (
        ("Course", "title"),
        ("Teacher", "person"),
        ("Room", "code"),
        ("Day", "day"),
        ("Credits", "number"),
        ("Students", "number"),
    ),
    (
        ("Star", "word"),
        ("Constellation", "beast"),
        ("Magnitude", "decimal"),
        ("Distance", "number"),
        ("Discovered by", "person"),
        ("Spectral type", "code"),
    ),
    (
        ("Mayor", "person"),
        ("Party", "firm"),
        ("Elected", "date"),
        ("Votes", "number"),
        ("Share", "percent"),
        ("District", "town"),
    ),
)
NUMERIC = ("number", "year", "decimal")


def _word(rng: Random) -> str:
    return copying.nonce(rng).capitalize()


def _date(rng: Random) -> str:
    month = rng.choice("January March April June July August October December".split())
    return f"{month} {rng.randint(1, 28)}, {rng.randint(1890, 2024)}"


def _title(rng: Random) -> str:
    thing, place = rng.choice(words.OBJECTS).capitalize(), rng.choice(words.PLACES).capitalize()
    look = rng.choice(words.LOOKS + words.SIZES).capitalize()
    return rng.choice(
        (
            f"The {look} {thing}",
            f"{place} of {_word(rng)}",
            f"{look} {place}",
            f"{_word(rng)} {place}",
        )
    )


VALUES = {
    "person": lambda r: (
        f"{r.choice(words.GIRLS + words.BOYS)} {r.choice((r.choice(words.SURNAMES), _word(r)))}"
    ),
    "team": lambda r: (
        f"{r.choice(words.TOWNS)} "
        f"{r.choice(('Lions', 'Owls', 'United', 'Rovers', 'Bears', 'Eagles'))}"
    ),
    "role": lambda r: r.choice(("Goalkeeper", "Defender", "Midfielder", "Forward", "Guard")),
    "land": lambda r: _word(r) + "ia",
    "measure": lambda r: f"{r.randint(1, 240)} {r.choice(('cm', 'kg', 'm'))}",
    "title": _title,
    "firm": lambda r: f"{_word(r)} {r.choice(('Press', 'Works', 'House', 'Group', 'Union'))}",
    "town": lambda r: r.choice((r.choice(words.TOWNS), _word(r))),
    "state": lambda r: r.choice(("In service", "Sunk", "Sold", "Museum ship", "Scrapped")),
    "side": lambda r: r.choice(("North", "South", "East", "West", "North-east")),
    "code": lambda r: r.choice((copying.code(r).replace("/", "-"), f"W{_word(r)[:3].upper()}")),
    "genre": lambda r: r.choice(("News", "Folk", "Jazz", "Rock", "Talk", "Country", "Classical")),
    "score": lambda r: f"{r.randint(0, 9)}-{r.randint(0, 9)}",
    "beast": lambda r: r.choice(list(words.ANIMALS)).capitalize(),
    "colour": lambda r: f"{r.choice(words.COLOURS)} and {r.choice(words.COLOURS)}",
    "word": _word,
    "clock": lambda r: f"{r.randint(1, 23)}:{r.randint(10, 59)}",
    "place": lambda r: r.choice(words.PLACES).capitalize(),
    "day": lambda r: r.choice(("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")),
    "percent": lambda r: f"{r.randint(1, 99)}.{r.randint(10, 99)}%",
    "date": _date,
    "year": lambda r: str(r.randint(1850, 2024)),
    "number": lambda r: str(r.randint(1, r.choice((30, 900, 40000)))),
    "decimal": lambda r: f"{r.randint(1, 120)}.{r.randint(1, 9)}",
}
