"""When texts end (a part of rung 9): the limits that were set, where they acted, else as seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weft.diagnose.compare.align import Said
from weft.diagnose.finding import Finding, Looked, Swap
from weft.diagnose.words import counted

RUNG = 9

NAMES: Mapping[str, str] = {
    "max_tokens": "most new tokens", "eos": "tokens that end a text",
    "stop": "strings that end a text", "min_tokens": "fewest new tokens",
}  # fmt: skip

Rows = Sequence[tuple[Said, Said]]


@dataclass(frozen=True)
class Stop:
    """A rule that differs."""

    key: str  # the setting
    words: str
    a: float | None = None
    b: float | None = None
    acted: bool = True


def stop_rules(rows: Rows) -> Looked:
    """Compare them over matched completions."""
    found = _set(rows) or _seen(rows)
    if found is None:
        lengths = sorted({len(said.tokens) for two in rows for said in two})
        return Looked(
            equal=(f"stop rules equal: {counted(len(rows), 'text')} of {_between(lengths)}",)
        )
    if not found.acted:
        return Looked((Finding(RUNG, "harmless", "stop", found.key, found.words),))
    a, b = rows[0]
    return Looked(
        (
            Finding(
                RUNG,
                "factor",
                "stop",
                found.key,
                found.words,
                value=found.a,
                other=found.b,
                unit="tokens" if found.key == "max_tokens" else "",
                where=b.of.where or a.of.where,
                fix=f"give both the same {NAMES[found.key]}",
                swap=Swap("stop", (found.key,)),
            ),
        )
    )


def _between(lengths: Sequence[int]) -> str:
    least = "" if len(lengths) == 1 else f"{lengths[0]} to "
    return least + counted(lengths[-1], "token")


def _set(rows: Rows) -> Stop | None:
    """Settings that differ, one that acted first."""
    found = []
    for key, name in NAMES.items():
        values = _told([x for x, _ in rows], key), _told([y for _, y in rows], key)
        if as_set(values[0]) == as_set(values[1]) or _may_be_alike(rows, key, values):
            continue
        acted = _acted(rows, key, as_set(values[0]) | as_set(values[1]))
        words = f"{name}: {_shown(values[0])} in A, {_shown(values[1])} in B"
        words += f" ({acted or 'no text came so far'})"
        found.append(Stop(key, words, number_of(values[0]), number_of(values[1]), bool(acted)))
    return min(found, key=lambda each: not each.acted, default=None)


def _may_be_alike(rows: Rows, key: str, values: tuple[Any, Any]) -> bool:
    """Whether a limit that was only seen on one side of a loop by hand may be that of both.

    It may, unless the other side went on past it.
    """
    for at in (0, 1):
        ours, limit = [two[at] for two in rows], values[1 - at]
        if values[at] is None and ours[0].of.driver == "loop" and limit is not None:
            if key == "max_tokens":
                return all(len(said.tokens) <= limit for said in ours)
            ends = [each for each in as_set(limit)]
            return not any(
                end in (said.text or "")[: -len(end)]
                if isinstance(end, str)
                else end in said.tokens[:-1]
                for said in ours
                for end in ends
            )
    return False


def _told(said: Sequence[Said], key: str) -> Any:
    """A setting of a side's completions; one that they contradict is none."""
    values = {as_set(each.of.settings.get(key)) for each in said}
    return said[0].of.settings.get(key) if len(values) == 1 else None


def _acted(rows: Rows, key: str, ends: frozenset[Any]) -> str:
    """What the setting did, in words; empty if it did nothing that was seen."""
    uneven = any(len(x.tokens) != len(y.tokens) for x, y in rows)
    if key == "max_tokens":
        counts = [sum(_by_length(two[at]) for two in rows) for at in (0, 1)]
        return f"{counts[0]} and {counts[1]} texts ended by it" if any(counts) else ""
    if key == "min_tokens":
        return "texts differ in length" if uneven else ""
    counts = [sum(two[at].ended == key for two in rows) for at in (0, 1)]
    past = any(ends & {*said.tokens[:-1]} for two in rows for said in two)
    if any(counts) or past or uneven:
        return f"{counts[0]} and {counts[1]} texts ended by {key}"
    return ""


def _seen(rows: Rows) -> Stop | None:
    """One text is the beginning of the other, or all end at one length here and another there."""
    lengths = [{len(two[at].tokens) for two in rows} for at in (0, 1)]
    limited = all(_by_length(said) or said.ended == "unknown" for two in rows for said in two)
    if len(lengths[0]) == len(lengths[1]) == 1 and lengths[0] != lengths[1] and limited:
        n, m = (each.pop() for each in lengths)
        words = f"all texts end at a length: {counted(n, 'token')} in A, {m} in B"
        return Stop("max_tokens", words, float(n), float(m))
    cut = [(x, y) for x, y in rows if _begins(x.tokens, y.tokens) or _begins(y.tokens, x.tokens)]
    if not cut:
        return None
    x, y = cut[0]
    words = (
        f"{len(cut)} of {len(rows)} texts are equal as far as the shorter goes: "
        f"one ends after {counted(len(x.tokens), 'token')} in A ({x.ended}), "
        f"after {len(y.tokens)} in B ({y.ended})"
    )
    short = min((x, y), key=lambda said: len(said.tokens))
    key = short.ended if short.ended in NAMES else "max_tokens"
    return Stop(key, words, float(len(x.tokens)), float(len(y.tokens)))


def _begins(short: tuple[int, ...], long: tuple[int, ...]) -> bool:
    return 0 < len(short) < len(long) and long[: len(short)] == short


def _by_length(said: Said) -> bool:
    limit = said.of.settings.get("max_tokens")
    return said.ended == "length" or (said.ended == "unknown" and len(said.tokens) == limit)


def as_set(value: Any) -> frozenset[Any]:
    """One value or several, in any order."""
    if value is None or value == "":
        return frozenset()
    return frozenset(value) if isinstance(value, list | tuple | set) else frozenset({value})


def number_of(value: Any) -> float | None:
    """A number, if that is what it is."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain else None


def _shown(value: Any) -> str:
    return "none" if value in (None, [], ()) else str(value)
