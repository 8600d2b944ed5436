"""Texts that were cut: at which end, and what was kept."""

from __future__ import annotations

from weft.diagnose.rungs.sources import Differing
from weft.diagnose.rungs.spans import Ids, Span, spans
from weft.diagnose.words import counted


def one_span(a: Ids, b: Ids) -> bool:
    """Whether one is the other without its start or its end, or both are ends of one text."""
    found = spans(a, b)
    return (len(found) == 1 and found[0].cut) or _overlap(a, b) > 0


def _overlap(a: Ids, b: Ids) -> int:
    """How many ids at the end of one are those at the start of the other; 0 for less than 8."""
    most = min(len(a), len(b))
    for size in range(most - 1, 7, -1):
        if a[-size:] == b[:size] or b[-size:] == a[:size]:
            return size
    return 0


def truncation(row: Differing, a: Ids, b: Ids, same_text: bool) -> str | None:
    """How the text was cut, in words; None where nothing says that it was."""
    cuts = [source is not None and source.cut for source in (row.text_a, row.text_b)]
    sides = [
        next((part.truncation_side for part in source.parts if part.truncation_side), None)
        if source is not None
        else None
        for source in (row.text_a, row.text_b)
    ]
    if any(cuts):
        said = [
            f"{letter} keeps {_kept(side)} {counted(len(ids), 'token')}"
            if cut
            else f"{letter} keeps all"
            for letter, side, ids, cut in zip("AB", sides, (a, b), cuts, strict=True)
        ]
        return f"long texts are cut differently: {said[0]}, {said[1]}"
    short, long = (a, b) if len(a) < len(b) else (b, a)
    letter = "A" if short is a else "B"
    if short and len(short) < len(long):
        if long[: len(short)] == short:
            return f"{letter} has only the start of the other's tokens"
        if long[-len(short) :] == short:
            return f"{letter} has only the end of the other's tokens"
    if (same_text or len(a) == len(b)) and _overlap(a, b):
        first = "A" if b[: _overlap(a, b)] == a[-_overlap(a, b) :] else "B"
        other = "B" if first == "A" else "A"
        return f"{first} keeps the start of long texts and {other} the end"
    if same_text and len(a) == len(b) and spans(a, b)[0].at_start and len(spans(a, b)) == 1:
        return "long texts are cut at other ends"
    return None


def _kept(side: str | None) -> str:
    return {"left": "the last", "right": "the first"}.get(side or "", "")


def lengths(row: Differing) -> str:
    """How many tokens both have, for one row."""
    return f"prompt {row.number}: {counted(len(row.a.ids), 'token')} in A, {len(row.b.ids)} in B"


def cut_alike(row: Differing) -> bool:
    """Whether a text was cut before it became ids: what is kept is long, and ends abruptly."""
    return min(len(row.a.ids), len(row.b.ids)) >= 16


def cut_text(span: Span) -> str:
    """What a text lacks, in words."""
    letter = "A" if not span.a else "B"
    return f"{letter}'s text lacks the {'start' if span.at_start else 'end'} of the other's"
