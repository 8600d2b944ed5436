"""Rung 1: resolved settings, those that matter, those that only round, those that only name.

A setting that is read by something that was recorded is left to the rung that looks at it: there a
difference is a fact, here only a candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from weft.diagnose.compare.places import number
from weft.diagnose.finding import Finding, Looked, Swap
from weft.diagnose.rungs import text
from weft.diagnose.rungs.keys import Meaning, meaning
from weft.diagnose.sides.evidence import Evidence, Pair, Setting

RUNG = 1

SCALE = ("adapter.alpha", "adapter.scale", "adapter.rslora")
"""Settings that say one thing, the multiplier of B @ A."""

CHOICES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("method.name", ("method.", "objective.", "optimiser.")),
    ("objective.name", ("objective.",)),
    ("optimiser.name", ("optimiser.",)),
    ("engine.name", ("engine.",)),
    ("data.task", ("data.path", "data.format", "data.rows")),
    ("data.path", ("data.format", "data.rows")),
    ("epochs", ("steps",)),
)
"""A choice, and how settings begin that only say more of it: another method has other settings."""

ORDER = ("base", "method", "data", "start", "objective", "optimiser", "adapter", "boost", "epochs")
"""How settings begin, those that decide most first."""

MOST = 4
"""Settings that are told of several."""

UNSET = Setting(None)


def look(pair: Pair) -> Looked:
    """Values under the same key, with where they came from."""
    a, b = pair.a.settings, pair.b.settings
    if not a or not b:
        lacking = " and ".join(name for name, side in pair.sides if not side.settings)
        return Looked(unseen=(f"settings: none were recorded in {lacking}",))
    whole = pair.a.kind == pair.b.kind and pair.a.kind in ("config", "run")
    keys = sorted(a.keys() | b.keys() if whole else a.keys() & b.keys())
    off = [key for key in keys if _plain(a.get(key, UNSET)) != _plain(b.get(key, UNSET))]
    findings = sorted(_acting(pair, off), key=lambda each: _weight(each.place))
    for weight, words in (
        ("numeric", "change rounding only"),
        ("cosmetic", "name or log things only"),
    ):
        idle = [key for key in off if meaning(key).weight == weight]
        if idle:
            shown = ", ".join(f"{key}: {_both(pair, key)}" for key in idle[:4])
            more = f" and {len(idle) - 4} more" if len(idle) > 4 else ""
            findings.append(
                Finding(
                    RUNG, "harmless", "settings", ", ".join(idle[:4]),
                    f"settings that {words} differ ({shown}{more})",
                )
            )  # fmt: skip
    same = len(keys) - len(off)
    return Looked(tuple(findings), (f"settings equal: {same} of {len(keys)}",) if same else ())


def _plain(setting: Setting) -> Any:
    """A value that compares as it is meant: lists and tuples, 1 and 1.0 alike."""
    value = setting.value
    if isinstance(value, (list, tuple)):
        return tuple(_plain(Setting(each)) for each in value)
    return value


def _acting(pair: Pair, off: Sequence[str]) -> Iterator[Finding]:
    """Settings that change what is computed and that no later rung of this pair looks at."""
    left = [key for key in off if meaning(key).weight == "semantic"]
    scales = [key for key in left if key in SCALE]
    if scales and not _later(pair, meaning("adapter.scale")):
        yield _scale(pair, "adapter.rank" in left)
    acting = []
    for key in left:
        if key in SCALE or _later(pair, meaning(key)):
            continue
        if key.startswith("data."):
            if _texts_say(pair):
                continue
            if _same_batches(pair):
                yield _idle(pair, key, "all batches are equal")
                continue
        acting.append(key)
    for key, more in _choices(pair, acting):
        yield _finding(pair, key, more) if key in acting else _part(pair, key, more)


def _choices(pair: Pair, keys: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Settings that were chosen, each with those that only say more of it."""
    left = list(keys)
    found = []
    for choice, parts in CHOICES:
        if choice in left:
            more = [key for key in left if key != choice and key.startswith(parts)]
            found.append((choice, more))
            left = [key for key in left if key != choice and key not in more]
    for part in dict.fromkeys(key.partition(".")[0] for key in left):
        own = [key for key in left if key.startswith(f"{part}.")]
        if len(own) > 1 and any(not _said_of(side, part) for _, side in pair.sides):
            found.append((part, own))
            left = [key for key in left if key not in own]
    return [*found, *((key, []) for key in left)]


def _said_of(side: Evidence, part: str) -> bool:
    return any(key.startswith(f"{part}.") for key in side.settings)


def _weight(key: str) -> int:
    return next((n for n, first in enumerate(ORDER) if key.startswith(first)), len(ORDER))


def _later(pair: Pair, known: Meaning) -> bool:
    return known.later is not None and known.later(pair)


def _texts_say(pair: Pair) -> bool:
    """Whether the texts themselves were seen to differ."""
    return any(each.nature == "factor" for each in text.look(pair).findings)


def _same_batches(pair: Pair) -> bool:
    a, b = ([step.batch for step in side.steps] for _, side in pair.sides)
    return bool(a) and all(a) and a == b


def _both(pair: Pair, key: str) -> str:
    """Both values, with where they came from where that differs and is not the side's own file."""
    a, b = (side.settings.get(key, UNSET) for _, side in pair.sides)
    return ", ".join(
        f"{_shown(mine)} in {letter}{_origin(side, mine, its)}"
        for (letter, side), mine, its in zip(pair.sides, (a, b), (b, a), strict=True)
    )


def _origin(side: Evidence, mine: Setting, its: Setting) -> str:
    plain = ("", "seen", its.origin, f"file {side.path.name}")
    return "" if mine.value is None or mine.origin in plain else f" ({mine.origin})"


def _shown(setting: Setting) -> str:
    value = setting.value
    if value is None:
        return "not set"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    words = number(value) if isinstance(value, float) else str(value)
    if len(words) >= 32 and all(digit in "0123456789abcdef" for digit in words):
        return words[:12]  # a digest
    return words if len(words) <= 60 else f"{words[:57]}..."


def _idle(pair: Pair, key: str, why: str) -> Finding:
    words = f"{key}: {_both(pair, key)}, and {why}"
    return Finding(RUNG, "harmless", meaning(key).label, key, words)


def _finding(pair: Pair, key: str, more: Sequence[str]) -> Finding:
    """One choice, and in words what else differs for its sake."""
    known = meaning(key)
    a, b = (side.settings.get(key, UNSET) for _, side in pair.sides)
    ratio = "" if key in ("seed", "seeds") else _ratio(a.value, b.value)
    return Finding(
        RUNG,
        "factor",
        known.label,
        key,
        f"{key} is {_both(pair, key)}{ratio}" + (f"; with it {_few(pair, more)}" if more else ""),
        value=float(b.value) if _number(b.value) else None,
        other=float(a.value) if _number(a.value) else None,
        unit=key.rpartition(".")[2],
        where=b.where or a.where,
        fix=f"set {key} alike in both",
        swap=Swap(known.swap, (key,)) if known.swap else None,
    )


def _part(pair: Pair, part: str, keys: Sequence[str]) -> Finding:
    """Settings of something that only one side has."""
    known = meaning(keys[0])
    letter, side = next(each for each in pair.sides if _said_of(each[1], part))
    other = "B" if letter == "A" else "A"
    few = [
        f"{key.removeprefix(f'{part}.')} {_shown(side.settings[key])}"
        for key in _ranked(pair, keys)[:MOST]
    ]
    return Finding(
        RUNG,
        "factor",
        known.label,
        part,
        f"{part} is set in {letter} and not in {other}: {', '.join(few)}"
        + (f", and {len(keys) - MOST} more" if len(keys) > MOST else ""),
        unit=part,
        fix=f"set {part} alike in both",
        swap=Swap(known.swap, tuple(keys)) if known.swap else None,
    )


def _few(pair: Pair, keys: Sequence[str]) -> str:
    """Some of several settings."""
    shown = "; ".join(f"{key}: {_both(pair, key)}" for key in _ranked(pair, keys)[:MOST])
    return shown + (f"; and {len(keys) - MOST} more" if len(keys) > MOST else "")


def _ranked(pair: Pair, keys: Sequence[str]) -> list[str]:
    """Names first, then what was given, then defaults."""

    def default(key: str) -> bool:
        both = (side.settings.get(key, UNSET) for _, side in pair.sides)
        return all(each.value is None or each.origin == "default" for each in both)

    return sorted(keys, key=lambda key: (not key.endswith(".name"), default(key)))


def _ratio(a: Any, b: Any) -> str:
    """How many times A's number B's is, where that says something."""
    if not (_number(a) and _number(b) and a * b > 0) or 0.95 <= b / a <= 1.05:
        return ""
    return f": {number(b / a)} times" if b / a > 1 else f": {number(a / b)} times less"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _scale(pair: Pair, rank_differs: bool) -> Finding:
    """Alpha, rank and scale say one number; what differs and leaves it alone is harmless."""
    a, b = (side.settings for _, side in pair.sides)
    one, other = (each.get("adapter.scale", UNSET).value for each in (a, b))
    said = ", ".join(
        f"{key.removeprefix('adapter.')} {_both(pair, key)}"
        for key in ("adapter.alpha", "adapter.rank", "adapter.rslora")
        if _plain(a.get(key, UNSET)) != _plain(b.get(key, UNSET))
    )
    if not _number(one) or not _number(other) or not one:
        return _finding(pair, "adapter.alpha", ())
    if abs(other / one - 1) < 1e-6:
        words = f"alpha or rank differ and the scale is {number(one)} in both ({said})"
        return Finding(RUNG, "harmless", "scale", "adapter.scale", words)
    times = other / one
    same_alpha = _plain(a.get("adapter.alpha", UNSET)) == _plain(b.get("adapter.alpha", UNSET))
    same_rule = _plain(a.get("adapter.rslora", UNSET)) == _plain(b.get("adapter.rslora", UNSET))
    return Finding(
        RUNG,
        "effect" if rank_differs and same_alpha and same_rule else "factor",
        "scale",
        "adapter.scale",
        f"the scale of B @ A is {number(one)} in A and {number(other)} in B, {number(times)} times"
        + (f" ({said})" if said else ""),
        value=times,
        other=1.0,
        unit="times A's scale",
        fix="scale alike in both: alpha / rank",
        swap=Swap("scale", SCALE),
    )
