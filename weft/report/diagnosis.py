"""The answer of `weft diff` as one HTML file, with pictures of where two sides part."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from weft.diagnose.finding import Cause, Diagnosis, Finding, Outcome, Passage
from weft.report.divergence import along, by_layer, by_step
from weft.report.html import Figure, Rows, write_page

VERDICTS = {"same": "better", "unsure": "", "different": "worse"}
"""The colour of each."""

MOMENTS = {"": "", " trained": " After training."}
"""What names of curves end with, and what captions then add."""

Mark = tuple[int, int, int]
"""Characters from where to where are marked, and the length of the other text."""


@dataclass(frozen=True)
class CauseShown:
    """One cause, in words."""

    label: str
    confidence: str
    words: str
    facts: str
    fix: str
    proof: Sequence[str]


@dataclass(frozen=True)
class PassageShown:
    """A passage, and which characters of it are marked."""

    title: str
    same_prompt: bool
    prompts: tuple[str, str]
    texts: tuple[str, str]
    prompt_marks: tuple[Mark, Mark]
    marks: tuple[Mark, Mark]


@dataclass(frozen=True)
class DiagnosisPage:
    """Everything that the page shows."""

    title: str
    headline: str
    verdict: str
    colour: str
    summary: Rows
    notices: Sequence[str]
    causes: Sequence[CauseShown]
    figures: Sequence[Figure]
    outcome: Sequence[Mapping[str, Any]]
    effects: Sequence[str]
    passages: Sequence[PassageShown]
    ruled_out: Sequence[str]
    harmless: Sequence[str]
    not_checked: Sequence[str]
    coverage: Sequence[str]
    command: str


def write_diagnosis(
    path: Path, found: Diagnosis, *, command: str, coverage: Sequence[str] = ()
) -> None:
    """Write the page at `path`, whole or not at all; `command` makes it again."""
    write_page(path, "diagnosis", page(found, command, coverage))


def page(found: Diagnosis, command: str, coverage: Sequence[str]) -> DiagnosisPage:
    """What the page shows of a diagnosis."""
    facts = {"A": found.a, "B": found.b}
    if found.first is not None:
        facts["first divergence"] = f"rung {found.first.rung}, {_place(found.first)}"
    return DiagnosisPage(
        title=f"weft diff {found.a} {found.b}",
        headline=found.words[:1].upper() + found.words[1:],
        verdict=found.verdict,
        colour=VERDICTS[found.verdict],
        summary=list(facts.items()),
        notices=[],
        causes=[_cause(cause) for cause in found.causes],
        figures=figures(found),
        outcome=[_outcome(each) for each in found.outcome],
        effects=[effect.words for effect in found.effects],
        passages=[_passage(each) for each in found.passages],
        ruled_out=found.ruled_out,
        harmless=found.harmless,
        not_checked=found.not_checked,
        coverage=coverage,
        command=command,
    )


def figures(found: Diagnosis) -> list[Figure]:
    """Pictures of the curves that there are; a single point is told in words."""
    first = found.first.step if found.first is not None and found.first.rung >= 10 else None
    drawn: dict[str, tuple[str, Callable[[Mapping[str, Any], Path], None]]] = {
        "layers": ("Hidden states of the same tokens, layer by layer.", by_layer),
        "hidden by position": (
            "Hidden states of the last block, position by position.",
            partial(along, across="position", measure="relative"),
        ),
        "positions": (
            "Distributions of the next token, position by position.",
            partial(along, across="position", measure="kl"),
        ),
        "prompts": (
            "Distributions of the next token after each prompt.",
            partial(along, across="prompt", measure="kl"),
        ),
        "decode": (
            "Distributions while text is made, token by token.",
            partial(along, across="step", measure="kl"),
        ),
        "steps": ("Training, step by step.", partial(by_step, first=first)),
    }
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for name, more in ((name, more) for name in drawn for more in MOMENTS):
            caption, draw = drawn[name]
            curve = found.curves.get(name + more)
            if curve and all(len(each) > 1 for each in curve.values() if isinstance(each, list)):
                draw(curve, path := Path(folder) / "figure.png")
                made.append(Figure(caption + MOMENTS[more], path.read_bytes()))
    return made


def _place(found: Finding) -> str:
    step = f"step {found.step}"
    return found.place if found.step is None or step in found.place else f"{found.place}, {step}"


def _cause(cause: Cause) -> CauseShown:
    of = cause.finding
    facts = [f"rung {of.rung}, {_place(of)}"]
    if of.value is not None and of.floor:
        facts.append(f"{of.value:,.4g} {of.unit}".strip())
    if of.floor and of.multiple is not None:
        facts.append(f"noise alone {of.floor:.3g}, so {_times(of.multiple)} times that")
    if cause.gap_closed is not None:
        facts.append(f"B with A's closes {cause.gap_closed:.1%} of the gap")
    if cause.reproduces is not None:
        facts.append(f"A with B's opens {cause.reproduces:.1%} of it")
    mend = of.mend()
    return CauseShown(of.label, cause.confidence, of.words, "; ".join(facts), mend, cause.proof)


def _times(multiple: float) -> str:
    if multiple >= 1e6:
        return f"{multiple:.0e}".replace("e+", "e")
    return f"{multiple:,.0f}" if multiple >= 10 else f"{multiple:.2g}"


def _outcome(outcome: Outcome) -> dict[str, Any]:
    measured = bool(outcome.unit or outcome.floor)
    return {
        "words": outcome.words,
        "value": outcome.value if measured else None,
        "unit": outcome.unit,
        "floor": outcome.floor or None,
        "multiple": _times(outcome.value / outcome.floor) if outcome.floor else "",
        "apart": outcome.apart,
        "class": VERDICTS[outcome.apart],
    }


def _passage(passage: Passage) -> PassageShown:
    at = passage.token
    return PassageShown(
        title="the same tokens" if at is None else f"parts at token {at}",
        same_prompt=passage.prompts[0] == passage.prompts[1],
        prompts=passage.prompts,
        texts=passage.texts,
        prompt_marks=marks(*passage.prompts),
        marks=marks(*passage.texts),
    )


def marks(a: str, b: str) -> tuple[Mark, Mark]:
    """The first word of each that is not in the other at the same place."""
    same = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    if a == b:
        return (same, same, 0), (same, same, 0)
    return _mark(a, same, len(b)), _mark(b, same, len(a))


def _mark(text: str, start: int, other: int) -> Mark:
    """From a character to the end of its word."""
    stop = start
    while stop < len(text) and text[stop].isspace():
        stop += 1
    while stop < len(text) and not text[stop].isspace():
        stop += 1
    return start, stop, other
