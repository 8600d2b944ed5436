"""Rung 2: texts, slots, token ids, masks, positions, labels: exact integer checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from weft.diagnose.compare.align import Row, prompt_rows, train_rows
from weft.diagnose.compare.matching import Matching
from weft.diagnose.compare.trail import same_data
from weft.diagnose.finding import Finding, Looked, Swap
from weft.diagnose.labels import Label
from weft.diagnose.rungs.differing import Reason, reasons
from weft.diagnose.rungs.feeding import labels, masks, positions, rows_named
from weft.diagnose.rungs.sources import differing, source
from weft.diagnose.sides.evidence import Evidence, Pair, Setting
from weft.diagnose.words import counted

RUNG = 2

SWAPS: dict[Label, str] = {"data": "prompt", "template": "prompt"}
"""Which factor stands for a reason; ids for all others."""

FIXES: dict[Label, str] = {
    "tokens": "let only one of template and tokenizer add special tokens",
    "template": "build prompts with the same template, and the generation prompt where one answers",
    "data": "look up the record by its key, and check it against the one asked about",
    "truncation": "give both the same length and truncation side",
    "tokenizer": "load the tokenizer that was saved with the adapter",
}


def look(pair: Pair) -> Looked:
    """Rows are matched without padding, so batches and their order make no difference."""
    if pair.a.kind in ("adapter", "config"):  # they say so themselves
        return Looked()
    findings: list[Finding] = []
    equal: list[str] = []
    unseen: list[str] = []
    prompts, trained = prompt_rows(pair), _of_one_record(pair, train_rows(pair))
    for rows, what in ((prompts, "prompt"), (trained, "training row")):
        if rows.pairs:
            made, same = _rows(pair, rows, what)
            findings += made
            equal += same
        elif rows.only_a or rows.only_b:
            letter = "A" if rows.only_a else "B"
            unseen.append(f"token ids of {what}s: only {letter} has any that were recorded")
    if not prompts.pairs and not trained.pairs:
        made, same = _texts_alone(pair)
        findings += made
        equal += same
        if not made and not same:
            unseen.append("token ids: no text was recorded on both sides")
    if trained.pairs:
        for each in labels(pair, trained.pairs):
            if isinstance(each, str):
                equal.append(each)
            else:
                findings.append(each)
    findings += _tokenizers(pair, findings)
    return Looked(tuple(findings), tuple(equal), tuple(unseen))


def _of_one_record(pair: Pair, rows: Matching[Row]) -> Matching[Row]:
    """Without pairs whose texts are whole other records of the same files: those came in turn.

    So did all that differ where one set of rows was drawn from with two seeds, or where rows that
    are equal came at other steps.
    """
    seeds = [side.settings.get("seed", Setting(None)).value for _, side in pair.sides]
    drawn = same_data(pair) and (seeds[0] != seeds[1] or _moved(rows))

    def apart(a: Row, b: Row) -> bool:
        if drawn and a.ids != b.ids:
            return True
        texts = source(pair.a, a.ids), source(pair.b, b.ids)
        records = [{slot.record for slot in text.slots} if text else set() for text in texts]
        files = [{record.rpartition(":")[0] for record in of} for of in records]
        return bool(records[0]) and files[0] == files[1] and not records[0] & records[1]

    return replace(rows, pairs=tuple(two for two in rows.pairs if not apart(*two)))


def _moved(rows: Matching[Row]) -> bool:
    """Whether most equal rows came at another step: then others came on one side only so far."""
    same = [(a, b) for a, b in rows.pairs if a.ids == b.ids]
    return 2 * sum(a.of.index != b.of.index for a, b in same) > len(same)


def _rows(pair: Pair, rows: Matching[Row], what: str) -> tuple[list[Finding], list[str]]:
    off = differing(pair, rows.pairs)
    found = reasons(pair, off)
    findings = [_finding(pair, reason, rows, what) for reason in found]
    equal = []
    same = [a for a, b in rows.pairs if a.ids == b.ids]
    if same:
        tokens = sum(len(row.ids) for row in same)
        equal.append(
            f"token ids equal: {len(same)} of {counted(len(rows.pairs), what)}, "
            f"{counted(tokens, 'token')}"
        )
    masked, said = masks(rows.pairs, what)
    findings += masked
    equal += said
    placed, said = positions(rows.pairs, what, bool(masked))
    findings += placed
    return findings, equal + said + _texts_equal(pair, rows, what)


def _texts_equal(pair: Pair, rows: Matching[Row], what: str) -> list[str]:
    """Records that the texts came from, where those are the same."""
    slots = [
        slot.record
        for a, b in rows.pairs
        if a.ids == b.ids
        for text in [source(pair.a, a.ids)]
        if text is not None
        for slot in text.slots
    ]
    if not slots:
        return []
    return [f"data records behind equal {what}s: {len(set(slots))} ({len(slots)} slots)"]


def _finding(pair: Pair, reason: Reason, rows: Matching[Row], what: str) -> Finding:
    among = len(rows.pairs)
    place = rows_named(reason.rows, among, what)
    if reason.token is not None and (len(reason.rows) == 1 or reason.label == "tokens"):
        place += f", token {reason.token}"
    shown = [each.replace("prompt ", f"{what} ", 1) for each in reason.details[:2]]
    details = f" ({'; '.join(shown)}" if shown else ""
    if details:
        details += f"; and {len(reason.details) - 2} more)" if len(reason.details) > 2 else ")"
    first = rows.pairs[reason.rows[0] - 1][1]
    origin = source(pair.b, first.ids)
    where = origin.parts[0].where if origin is not None else None
    return Finding(
        RUNG,
        "factor",
        reason.label,
        place,
        f"{reason.words}, at {rows_named(reason.rows, among, what)}{details}",
        value=float(len(reason.rows)),
        other=float(among),
        unit=f"{what}s",
        where=where or first.of.where,
        fix=FIXES.get(reason.label),
        swap=Swap(SWAPS.get(reason.label, "ids")),
    )


def _texts_alone(pair: Pair) -> tuple[list[Finding], list[str]]:
    """Where no pass was recorded with its ids: what the tokenizers made."""
    a, b = ({each.text: each for each in side.encoded} for _, side in pair.sides)
    if not a or not b:
        return [], []
    shared = [text for text in a if text in b]
    off = [text for text in shared if a[text].ids != b[text].ids]
    if off:
        one, other = a[off[0]], b[off[0]]
        return [
            Finding(
                RUNG,
                "factor",
                "tokenizer",
                f"{counted(len(off), 'text')}",
                f"{len(off)} of {len(shared)} texts have other token ids ("
                f"{counted(len(one.ids), 'token')} in A, {len(other.ids)} in B for the first)",
                value=float(len(off)),
                unit="texts",
                where=other.where,
                fix=FIXES["tokenizer"],
                swap=Swap("ids"),
            )
        ], []
    return [], [
        f"token ids equal: {len(shared)} of {counted(len(a), 'encoded text')}"
    ] if shared else []


def _tokenizers(pair: Pair, found: Sequence[Finding]) -> Iterator[Finding]:
    """Tokenizers that differ without a difference in what they made."""
    if found or not pair.a.tokenizers or not pair.b.tokenizers:
        return
    a, b = pair.a.tokenizers[0], pair.b.tokenizers[0]
    for key, words in (
        ("vocabulary", "vocabularies"),
        ("template", "chat templates"),
        ("special", "special tokens"),
        ("padding_side", "padding sides"),
        ("truncation_side", "truncation sides"),
    ):
        x, y = getattr(a, key), getattr(b, key)
        if x == y:
            continue
        shown = f" ({x} in A, {y} in B)" if key.endswith("side") else ""
        yield Finding(
            RUNG,
            "harmless",
            "tokenizer",
            "tokenizer",
            f"{words} of the tokenizers differ{shown}, and all token ids are equal"
            if _read(pair.a) and _read(pair.b)
            else f"{words} of the tokenizers differ{shown}",
        )


def _read(side: Evidence) -> bool:
    return any(each.ids is not None for each in side.passes)
