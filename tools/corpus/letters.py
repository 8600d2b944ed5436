"""Copying and looking up words that are spelt in pieces.

The other genres use a small vocabulary, whose words are mostly single tokens. Here words are put
together from many letter groups, so that rare pieces are seen often enough to be copied.
They enter in the last stage of pretraining.
"""

from __future__ import annotations

from random import Random

from tools.corpus import copying

ONSETS = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k kn l m n p ph pl pr qu r rh s sc sch sh sk "
    "sl sm sn sp spr st str sw t th tr tw v w wh wr x y z"
).split()
VOWELS = ("a e i o u ai au ay ea ee ei eu ie oa oi oo ou ow ue y ia io").split()
CODAS = (
    "b ck ct d ff ft g k l lf ll lm lt m mp n nc nd ng nk nt p pt r rd rg rk rl rm rn rt s sh "
    "sk ss st t tch th tt v w x z"
).split()
ENDINGS = (
    "tion sion ment ity ous able ible ency ance ence ing ed er or ist ism ship ness ful less "
    "ward ary ory ure age al ial ic ical ive ize ify ly est th hood dom ville ton ford ham burg "
    "ski son"
).split()
PLAIN = (
    "frequency position nationality population attendance winner runner champion location "
    "region district publisher language episode director original season station format owner "
    "company union league club committee university college department minister president "
    "election votes percent area elevation range climber circuit driver engine maker model "
    "power train platform departs arrives chart label genre length jockey trainer odds horse "
    "bird habitat scientific wingspan course teacher credits students constellation magnitude "
    "discovered spectral type laid down launched crew status written directed viewers millions "
    "air date since founded round pole race winning losing score stadium school mascot "
    "enrollment head coach mountain first debut height goals player team captain shipyard "
    "author title year pages news folk jazz rock talk country classical goalkeeper defender "
    "midfielder forward guard service sunk sold museum scrapped january february march april "
    "may june july august september october november december north south east west press works "
    "house group lions owls united rovers bears eagles"
).split()


def spelt(rng: Random) -> str:
    """A made-up word of letter groups."""
    word = ""
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        word += rng.choice(ONSETS) + rng.choice(VOWELS)
        if rng.random() < 0.5:
            word += rng.choice(CODAS)
    if rng.random() < 0.35:
        word += rng.choice(ENDINGS)
    return word


def word(rng: Random) -> str:
    """A made-up word, a plain one, or a few loose letters; often with a capital."""
    roll = rng.random()
    if roll < 0.5:
        text = spelt(rng)
    elif roll < 0.85:
        text = rng.choice(PLAIN)
    else:
        text = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(1, 5)))
    style = rng.random()
    if style < 0.06:
        return text.upper()
    return text.capitalize() if style < 0.6 else text


def label(rng: Random) -> str:
    """One to three words, as at the head of a column."""
    name = " ".join(word(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3))))
    if rng.random() < 0.15:
        name += rng.choice((" (m)", " (km)", " %", " #", f" ({word(rng)})", "/" + word(rng)))
    return name


def value(rng: Random) -> str:
    """Something that stands in a cell."""
    roll = rng.random()
    if roll < 0.6:
        return label(rng)
    if roll < 0.75:
        return f"{word(rng).capitalize()} {rng.randint(1, 28)}, {rng.randint(1850, 2030)}"
    return copying.value(rng)


def echo(rng: Random) -> str:
    """A line of words, again in full or in part."""
    items = [label(rng) for _ in range(rng.randint(4, 16))]
    glue = rng.choice((" ", ", ", ", ", "\n"))
    start = rng.randrange(len(items) - 2)
    again = rng.choice((items, items[start:]))
    return f"{glue.join(items)}\n{glue.join(again)}"


def pairs(rng: Random) -> str:
    """Keys and values, asked again in another order; or small letters turned into capitals."""
    table = {label(rng): value(rng) for _ in range(rng.randint(3, 6))}
    sep = rng.choice((": ", " = ", " -> ", " is "))
    again = rng.sample(list(table.items()), rng.randint(2, len(table)))
    if rng.random() < 0.4:
        again = [(key.lower(), val) for key, val in again]
    return "\n".join(f"{key}{sep}{val}" for key, val in [*table.items(), *again])


def statement(rng: Random) -> str:
    """Column names, a wish in small letters, and the statement with the names as they are."""
    columns = list(dict.fromkeys(label(rng) for _ in range(rng.randint(3, 7))))
    picked = columns[:]
    rng.shuffle(picked)
    what, name = picked[0], picked[-1]
    ident = rng.choice(
        (f"{rng.randint(2, 9)}-{rng.randint(1000, 99999999)}-{rng.randint(1, 40)}", spelt(rng))
    )
    cell = value(rng)
    call = rng.choice(("", "", "", "COUNT ", "MAX ", "MIN ", "SUM ", "AVG "))
    said = {
        "": "the",
        "COUNT ": "the number of",
        "MAX ": "the highest",
        "MIN ": "the lowest",
        "SUM ": "the sum of",
        "AVG ": "the average",
    }[call]
    literal = cell if cell.isdigit() else f"'{cell}'"
    wish = rng.choice(
        (
            f"{said} {what.lower()} where {name.lower()} is {cell}",
            f"{said} {what.lower()} with {name.lower()} {cell}",
            f"for {name.lower()} {cell}, {said} {what.lower()}",
            f"{said} {what.lower()} when the {name.lower()} is {cell}",
        )
    )
    text = f"SELECT {call}{what} FROM {ident} WHERE {name} = {literal}"
    return rng.choice(
        (
            f"{ident} ({', '.join(columns)})\n-- {wish}\n{text};",
            f"[{ident}] [{', '.join(columns)}]\n[{wish}]\n[{text}]",
            f"{ident}: {', '.join(columns)}\nWanted: {wish}.\n    {text}",
        )
    )


def document(rng: Random) -> str:
    """A few texts of one kind or another."""
    kinds = (echo, pairs, statement, statement)
    return "\n".join(rng.choice(kinds)(rng) for _ in range(rng.randint(1, 4)))
