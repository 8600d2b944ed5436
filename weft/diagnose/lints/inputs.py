"""What models were given: padding, positions, labels, the text so far; how tokens were chosen."""

from __future__ import annotations

from collections.abc import Sequence

from weft.core.batch import IGNORE
from weft.diagnose.compare.align import Row, pad_ids, prompt_passes, rows_of
from weft.diagnose.compare.context import FIXES, LABELS, check
from weft.diagnose.lints.lint import Lint, Lints, State, some
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.diagnose.sides.samplers import sampler_of
from weft.diagnose.words import counted
from weft.runs.evidence import Pass


def look(side: Evidence) -> Lints:
    """All of it."""
    yield from _padding(side)
    yield from _labels(side)
    yield from _decoding(side)
    yield from _seeds(side)


def _padding(side: Evidence) -> Lints:
    pads = pad_ids(Pair(side, side))
    trained = [each for each in side.passes if each.phase == "train"]
    rows = rows_of(side, [*prompt_passes(side), *trained], pads)
    padded = [row for row in rows if row.padding]
    if not padded:
        return
    attended = [row for row in padded if row.attended_padding]
    hidden = [row for row in rows if row.hidden_tokens]
    shifted = [row for row in padded if _shifted(row)]
    if attended:
        yield Lint(
            "padding",
            "problem",
            f"{len(attended)} of {len(padded)} padded rows attend to padding before their text, "
            f"{counted(max(row.attended_padding for row in attended), 'token')} at the most"
            + ("; no attention mask was given" if attended[0].mask is None else ""),
            value=len(attended),
            where=attended[0].of.where,
            fix="pass the attention mask that the tokenizer returns",
        )
    if hidden:
        yield Lint(
            "padding",
            "problem",
            f"the mask hides text of {len(hidden)} of {counted(len(rows), 'row')}",
            value=len(hidden),
            where=hidden[0].of.where,
            fix="let the mask be 0 at padding only",
        )
    if shifted:
        yield Lint(
            "positions",
            "warning",
            f"{len(shifted)} of {len(padded)} padded rows count their positions from the padding: "
            "harmless for purely relative positions, wrong for absolute ones",
            value=len(shifted),
            where=shifted[0].of.where,
            fix="position_ids = attention_mask.cumsum(-1) - 1",
        )
    if not (attended or hidden or shifted):
        yield Lint(
            "padding",
            "ok",
            f"no row attends to padding: {counted(len(padded), 'padded row')}",
            len(padded),
        )


def _shifted(row: Row) -> bool:
    positions = row.positions
    return positions is not None and len(positions) > 0 and row.start > 0 and positions[0] != 0


def _labels(side: Evidence) -> Lints:
    goal = side.settings.get("objective.name")
    seen = [each for each in side.passes if each.labels is not None and each.ids is not None]
    if not seen or (goal is not None and goal.value == "reward"):  # which reads no labels
        return
    counts, all_open, on_pads = [], 0, []
    pads = pad_ids(Pair(side, side))
    for each in seen:
        labels_BT = side.array(each.labels or "")
        for row in rows_of(side, (each,), pads):
            labels_T = labels_BT[row.number]
            supervised = labels_T != IGNORE
            counts.append(int(supervised.sum()))
            inside = supervised[row.start : row.stop]
            all_open += bool(len(inside) > 1 and inside[1:].all())
            if supervised[: row.start].any() or supervised[row.stop :].any():
                on_pads.append(each)
    yield from _supervised(seen, counts, all_open, on_pads)


def _supervised(
    seen: Sequence[Pass], counts: Sequence[int], all_open: int, on_pads: Sequence[Pass]
) -> Lints:
    where = seen[0].where
    if not any(counts):
        yield Lint(
            "labels",
            "problem",
            f"no token of {counted(len(counts), 'row')} is supervised: all labels are {IGNORE}",
            value=0,
            where=where,
            fix="look at where labels are masked; a template that is not found masks everything",
        )
    elif empty := sum(count == 0 for count in counts):
        yield Lint(
            "labels",
            "warning",
            f"{empty} of {len(counts)} rows have no supervised token",
            value=empty,
            where=where,
            fix="rows that were cut before their answer teach nothing: drop them, or allow more",
        )
    elif on_pads:
        yield Lint(
            "labels",
            "problem",
            f"padding is supervised in {len(on_pads)} of {counted(len(counts), 'row')}",
            value=len(on_pads),
            where=on_pads[0].where,
            fix=f"labels are {IGNORE} at padding",
        )
    else:
        tokens, rows = counted(sum(counts), "supervised token"), counted(len(counts), "row")
        words = f"{tokens} in {rows}"
        if all_open:
            words += f", every token in {all_open} of them, also of prompts"
        yield Lint("labels", "ok", words, value=sum(counts))


def _decoding(side: Evidence) -> Lints:
    if not side.generations:
        return
    faults = check(side)
    for fault in faults:
        yield Lint(
            "context" if LABELS[fault.fault] == "cache" else "decoding positions",
            "problem",
            fault.words,
            value=fault.size,
            place=f"decoding step {fault.step} on",
            where=fault.where,
            fix=FIXES[fault.fault],
        )
    texts = sum(len(each.tokens) for each in side.generations)
    if not faults and any(each.passes for each in side.generations):
        yield Lint(
            "context",
            "ok",
            f"every step of {counted(texts, 'text')} saw the whole text so far",
            texts,
        )
    cut = sum(each == "length" for made in side.generations for each in made.ended)
    if cut:
        state: State = "warning" if cut == texts else "ok"
        yield Lint(
            "ending",
            state,
            f"{cut} of {texts} texts were cut off at their longest length",
            value=cut,
            where=side.generations[0].where,
            fix="allow more tokens, or see whether the stop token is the one that was trained"
            if state == "warning"
            else None,
        )


def _seeds(side: Evidence) -> Lints:
    drawn = [each for each in side.generations if sampler_of(side, each).greedy is False]
    if not drawn:
        return
    first = drawn[0]
    before = []
    for event in side.events:
        if event is first:
            break
        if event.kind == "seeded":
            before.append(event)
    if not before:
        yield Lint(
            "seed",
            "warning",
            f"tokens are drawn in {counted(len(drawn), 'generation')}, and nothing was seeded: no "
            "run says the same",
            value=len(drawn),
            where=first.where,
            fix="torch.manual_seed(0) before generating, or temperature 0",
        )
    else:
        told = [f"{each.library} {each.seed}" for each in before]
        yield Lint("seed", "ok", f"seeded before drawing: {some(told)}", value=before[-1].seed)
