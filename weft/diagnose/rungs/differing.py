"""Why the token ids of matched rows differ: data, template, tokenizer, truncation, special tokens.

Spans that are the same in many rows are the frame of a text (its template); spans that differ from
row to row are its contents. Texts that are equal and ids that are not point at the tokenizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from weft.diagnose.labels import Label
from weft.diagnose.rungs.cuts import cut_alike, cut_text, lengths, one_span, truncation
from weft.diagnose.rungs.sources import Differing, Source
from weft.diagnose.rungs.spans import Ids, Span, quoted, spans
from weft.diagnose.sides.evidence import Pair
from weft.diagnose.words import counted
from weft.runs.evidence import Slot


@dataclass
class Reason:
    """One reason, and the rows that it holds for."""

    label: Label
    words: str
    rows: list[int] = field(default_factory=list)
    token: int | None = None  # the first position, from 1, that differs
    details: list[str] = field(default_factory=list)


Said = tuple[Label, str, str, int | None, str]
"""A label, what groups rows, words for all of them, the first token, and words for this row."""


def reasons(pair: Pair, rows: Sequence[Differing]) -> list[Reason]:
    """Why the ids differ, the reason with most rows first."""
    counts = Counter(key for row in rows for key in {(span.a, span.b) for span in row.spans})
    found: dict[tuple[Label, str], Reason] = {}
    for row in rows:
        for label, key, words, token, detail in _of_row(pair, row, counts, len(rows)):
            reason = found.setdefault((label, key), Reason(label, words, token=token))
            if row.number not in reason.rows:
                reason.rows.append(row.number)
            if detail and detail not in reason.details:
                reason.details.append(detail)
    _cut_apart(pair, rows, found)
    return sorted(found.values(), key=lambda reason: -len(reason.rows))


def _cut_apart(
    pair: Pair, rows: Sequence[Differing], found: dict[tuple[Label, str], Reason]
) -> None:
    """A long text's start and end share no token: where one tokenizer cut others at a length,
    texts that are as long on both sides, and have no token in common, were cut as well.
    """
    cut, other = found.get(("truncation", "cut")), found.get(("tokenizer", "ids"))
    vocabularies = [{each.vocabulary for each in side.tokenizers} for _, side in pair.sides]
    if cut is None or other is None or vocabularies[0] != vocabularies[1]:
        return
    sizes = {row.number: (len(row.a.ids), len(row.b.ids)) for row in rows}
    moved = [n for n in other.rows if sizes[n] in {sizes[each] for each in cut.rows}]
    cut.rows = sorted({*cut.rows, *moved})
    other.rows = [n for n in other.rows if n not in moved]
    if not other.rows:
        del found["tokenizer", "ids"]


def _of_row(
    pair: Pair, row: Differing, counts: Counter[tuple[Any, Any]], among: int
) -> Iterator[Said]:
    (lead_a, core_a, trail_a), (lead_b, core_b, trail_b) = row.frame_a, row.frame_b
    if row.same_text or core_a == core_b or _repeats(lead_a) != _repeats(lead_b):
        yield from _frames(pair, lead_a, lead_b, trail_a, trail_b, len(row.a.ids))
    if core_a == core_b:
        return
    token = len(lead_a) + spans(core_a, core_b)[0].start + 1
    cut = truncation(row, core_a, core_b, row.same_text)
    if row.text_a is not None and row.text_b is not None:
        if not row.same_text:
            yield from _texts(pair, row, row.text_a, row.text_b, counts, among, token)
        elif cut and (row.text_a.cut or row.text_b.cut or one_span(core_a, core_b)):
            yield "truncation", "cut", cut, token, lengths(row)
        else:
            example = _example(core_a, core_b, row.text_a.text)
            yield "tokenizer", "ids", _tokenizers(pair), token, example
        return
    for span in row.spans:
        at = len(lead_a) + span.start + 1
        common = _is_common(counts[(span.a, span.b)], among, span)
        if cut is not None and span.cut and not common:
            yield "truncation", "cut", cut, at, lengths(row)
        elif common:
            yield "template", f"{span.a}{span.b}", _framed(span), at, ""
        else:
            yield "data", "ids", "the contents differ", at, _contents(row, span)


def _is_common(count: int, among: int, span: Span) -> bool:
    """Whether a span is part of the frame: in most rows, or at the edge of the only one."""
    if among > 1:
        return count >= max(2, 0.5 * among)
    return (span.at_start or span.at_end) and (not span.a or not span.b)


def _frames(
    pair: Pair, lead_a: Ids, lead_b: Ids, trail_a: Ids, trail_b: Ids, length: int
) -> Iterator[Said]:
    names = {
        number: name
        for side in (pair.b, pair.a)
        for seen in side.tokenizers
        for name, number in seen.special.items()
    }
    for a, b, where, token in (
        (lead_a, lead_b, "start", min(len(lead_a), len(lead_b)) + 1),
        (trail_a, trail_b, "end", length - len(trail_a) + 1),
    ):
        if a == b:
            continue
        said = [
            " ".join(f"{names.get(each, 'special').upper()} ({each})" for each in ids) or "none"
            for ids in (a, b)
        ]
        twice = [
            f"; {letter} has {names.get(ids[0], 'it').upper()} twice: the text has it, and the "
            "tokenizer adds it again"
            for letter, ids, other in (("A", a, b), ("B", b, a))
            if _repeats(ids) and not _repeats(other)
        ]
        words = f"special tokens at the {where} differ: {said[0]} in A, {said[1]} in B"
        yield "tokens", f"{where}{a}{b}", words + "".join(twice), token, ""


def _repeats(ids: Ids) -> bool:
    return any(x == y for x, y in pairwise(ids))


def _tokenizers(pair: Pair) -> str:
    words = "the same text has other token ids"
    for a, b in zip(pair.a.tokenizers, pair.b.tokenizers, strict=False):
        lost = [sorted(set(x.added) - set(y.added)) for x, y in ((a, b), (b, a))]
        for letter, other, tokens in (("B", "A", lost[0]), ("A", "B", lost[1])):
            if tokens:
                shown = ", ".join(map(repr, tokens[:3])) + (", ..." if len(tokens) > 3 else "")
                lacks = (
                    f"{letter}'s tokenizer lacks {counted(len(tokens), 'added token')} of {other}'s"
                )
                words += f": {lacks} ({shown})"
        if not any(lost) and a.vocabulary != b.vocabulary:
            words += f": the vocabularies differ ({a.name}: {a.size} in A, {b.name}: {b.size} in B)"
    return words


def _example(a: Ids, b: Ids, text: str) -> str:
    span = spans(a, b)[0]
    return f"{quoted(span.a)} in A is {quoted(span.b)} in B, in {quoted(text, 'start')}"


def _framed(span: Span) -> str:
    where = "at the start" if span.at_start else "at the end" if span.at_end else "within the text"
    if not span.b:
        return f"A has {quoted(span.a)} {where}, and B has not"
    if not span.a:
        return f"B has {quoted(span.b)} {where}, and A has not"
    return f"A has {quoted(span.a)} {where} where B has {quoted(span.b)}"


def _contents(row: Differing, span: Span) -> str:
    return f"prompt {row.number}: {quoted(span.a)} in A, {quoted(span.b)} in B"


def _texts(
    pair: Pair,
    row: Differing,
    a: Source,
    b: Source,
    counts: Counter[tuple[Any, Any]],
    among: int,
    token: int,
) -> Iterator[Said]:
    """Texts differ: by a slot that holds another record's value, by their frame, or otherwise."""
    covered: list[tuple[int, int, int, int]] = []
    for one, other in _slots(a, b):
        x, y = a.text[one.start : one.stop], b.text[other.start : other.stop]
        if x != y:
            covered.append((one.start, one.stop, other.start, other.stop))
            yield (
                "data",
                "slot",
                f"`{one.field}` holds another record's value",
                token,
                f"prompt {row.number}: {one.record} in A, {other.record} in B",
            )
    for span in row.spans:
        if any(_within(span, box) for box in covered):
            continue
        common = _is_common(counts[(span.a, span.b)], among, span)
        owner = _owner(pair, row, span)
        if owner is not None and not (common and among > 1):
            yield "data", "slot", "a part of the prompt is another record's", token, owner
        elif span.cut and not common and cut_alike(row):
            yield "truncation", "cut", cut_text(span), token, lengths(row)
        elif common:
            yield "template", f"{span.a}{span.b}", _framed(span), token, _templates(pair)
        else:
            yield "data", "text", "the contents differ", token, _contents(row, span)


def _slots(a: Source, b: Source) -> Iterator[tuple[Slot, Slot]]:
    """Slots of one field, in order."""
    left = list(b.slots)
    for slot in a.slots:
        found = next((each for each in left if each.field == slot.field), None)
        if found is not None:
            left.remove(found)
            yield slot, found


def _within(span: Span, box: tuple[int, int, int, int]) -> bool:
    start, stop, start_b, stop_b = box
    inside = start <= span.start and span.stop <= stop
    return inside and start_b <= span.start_b and span.stop_b <= stop_b


def _owner(pair: Pair, row: Differing, span: Span) -> str | None:
    """The record, or the other prompt, that a differing span of B's text is from."""
    said = str(span.b).strip()
    if len(said) < 4:
        return None
    for side in (pair.b, pair.a):
        for each in side.encoded:
            for slot in each.slots:
                if each.text[slot.start : slot.stop].strip() == said:
                    return f"prompt {row.number}: {quoted(said)} is `{slot.field}` of {slot.record}"
    return None


def _templates(pair: Pair) -> str:
    seen = [
        {each.template for each in side.tokenizers if each.template is not None}
        for side in (pair.a, pair.b)
    ]
    return "the chat templates differ" if all(seen) and seen[0] != seen[1] else ""
