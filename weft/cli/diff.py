"""`weft diff`: do two runs, recordings, adapters or configurations differ, where first, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weft.cli import screen
from weft.cli.options import Json
from weft.cli.sections import Entry, Piece, Section, put, shown
from weft.core.errors import InputError

if TYPE_CHECKING:
    from weft.diagnose.finding import Cause, Diagnosis, Finding

COLOURS = {"same": "bold green", "unsure": "bold yellow", "different": "bold red"}
CONFIDENCE = {
    "proven": "bold green",
    "supported": "green",
    "located": "yellow",
    "unresolved": "red",
}

Side = Annotated[str, typer.Argument(metavar="A", help="A run, recording, adapter or config.")]


def diff(
    a: Side,
    b: Annotated[str, typer.Argument(metavar="B", help="Another of the kind.")],
    prove: Annotated[
        bool, typer.Option("--prove", help="Exchange suspected causes, and measure the gap.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(metavar="REF", help="The base model [default: the one that A and B name]."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of what --prove draws.")] = 0,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with pictures.")
    ] = None,
    assert_same: Annotated[
        bool, typer.Option("--assert-same", help="Exit with 1 unless they are the same.")
    ] = False,
    json: Json = False,
) -> None:
    """Say why two runs differ: first divergence, causes, proof.

    \b
    weft diff runs/a runs/b
    weft diff recordings/good recordings/bad --prove
    weft diff adapters/a adapters/b --base weft/tiny
    weft diff a.yaml b.yaml --assert-same

    A and B are runs, recordings of scripts (`weft record`), adapters, or
    configurations. What differs is held against what noise alone gives.
    """  # noqa: D301
    from weft.core.files import check_place
    from weft.diagnose.diff import diff as diagnose

    if html is not None:
        check_place(html, "--html")
    if seed and not prove:
        raise InputError("only --prove draws: --seed has nothing to do", hint="give both, or none")
    if prove:
        from weft.cli.progress import ProofProgress

        with ProofProgress() as watch:
            found = diagnose(a, b, prove=True, base=base, seed=seed, watch=watch)
    else:
        found = diagnose(a, b, base=base, seed=seed)
    again = command(a, b, prove, base, seed)
    if json:
        screen.put_json(found.record())
    else:
        put(sections(found, again, proving=prove))
    if html is not None:
        from weft.report.diagnosis import write_diagnosis

        write_diagnosis(html, found, command=again, coverage=coverage(found))
        screen.say(f"written: {html}")
    exchangeable = found.coverage.get("A", {}).get("kind") != "config"
    if found.verdict == "different" and exchangeable and not prove and not json:
        screen.say()
        screen.say(f"next: {command(a, b, True, base, seed)}")
    if assert_same and found.verdict != "same":
        raise typer.Exit(1)


def command(a: str, b: str, prove: bool, base: str | None, seed: int) -> str:
    """The command line that asks for this again."""
    given = [*["--prove"] * prove]
    if base is not None:
        given += ["--base", base]
    if seed:
        given += ["--seed", str(seed)]
    return screen.command("weft", "diff", a, b, *given)


def sections(found: Diagnosis, again: str, *, proving: bool = False) -> list[Section]:
    """A diagnosis as it stands on the screen.

    What a proof could not do is said last of what was not checked, and matters most.
    """
    several = len(found.causes) > 1
    unchecked = reversed(found.not_checked) if proving else found.not_checked
    return [
        Section("VERDICT", (_verdict(found),)),
        Section("FIRST DIVERGENCE", tuple(_first(found))),
        Section("CAUSES" if several else "CAUSE", tuple(_causes(found)), worth=3),
        Section("PROOF", tuple(_proof(found)), worth=2),
        Section("EFFECT", tuple(_effect(found))),
        Section("FIX", tuple(_fixes(found.causes)), worth=1),
        Section("RULED OUT", _lines(found.ruled_out)),
        Section("HARMLESS", _lines(found.harmless), least=1),
        Section("NOT CHECKED", _lines(unchecked), least=1),
        Section("COVERAGE", _lines(coverage(found)), least=3),
        Section("REPRODUCE", (Entry.of(again),)),
    ]


def _lines(texts: Iterable[str]) -> tuple[Entry, ...]:
    return tuple(Entry.of(text) for text in texts)


def _verdict(found: Diagnosis) -> Entry:
    verdict = (found.verdict, COLOURS[found.verdict])
    if found.verdict != "different" or not found.causes:
        return Entry.of(verdict, f". {found.words}")
    first = found.causes[0]
    several = f", the first of {len(found.causes)}" if len(found.causes) > 1 else ""
    kind = "Found" if first.confidence == "unresolved" else "Root cause"
    return Entry.of(
        verdict,
        f". {kind} (",
        (first.confidence, CONFIDENCE[first.confidence]),
        f"{several}): {first.finding.words}",
    )


def _first(found: Diagnosis) -> Iterable[Entry]:
    if found.first is None:
        return
    told = {cause.finding.words for cause in found.causes}
    name = rung_name(found.first.rung)
    where = f"rung {found.first.rung}{f' ({name})' if name else ''}, {place(found.first)}"
    yield Entry.of(where if found.first.words in told else f"{where}: {found.first.words}")


def _causes(found: Diagnosis) -> Iterable[Entry]:
    """A cause each: what, how sure, where, how much, and in words; the verdict says the first."""
    for number, cause in enumerate(found.causes, start=1):
        of = cause.finding
        where = f"rung {of.rung}"
        if number == 1 or place(of) not in of.words:
            where += f", {place(of)}"
        pieces: list[Piece] = [
            f"{number}. " if len(found.causes) > 1 else "",
            (of.label, "bold"),
            ", ",
            (cause.confidence, CONFIDENCE[cause.confidence]),
            f" ({where}{_after(amounts(cause))})",
        ]
        yield Entry.of(*pieces, f": {of.words}" if number > 1 else "")


def _after(parts: Sequence[str]) -> str:
    return "".join(f"; {part}" for part in parts)


def _proof(found: Diagnosis) -> Iterable[Entry]:
    several = len(found.causes) > 1
    for number, cause in enumerate(found.causes, start=1):
        for text in cause.proof:
            yield Entry.of(f"{number}. {text}" if several else text)


def _effect(found: Diagnosis) -> Iterable[Entry]:
    for outcome in sorted(found.outcome, key=lambda each: (each.unit != "nats", -each.value)):
        yield Entry.of(outcome.words)
    for effect in found.effects:
        yield Entry.of(effect.words)
    for words in found.coverage.get("consequences", ()):
        yield Entry.of(words)


def _fixes(causes: Sequence[Cause]) -> Iterable[Entry]:
    for number, cause in enumerate(causes, start=1):
        if mend := cause.finding.mend():
            yield Entry.of(f"{number}. {mend}" if len(causes) > 1 else mend)


def place(found: Finding) -> str:
    """Where, and at which step."""
    at = f", step {found.step}" if found.step is not None else ""
    return f"{found.place}{at if f'step {found.step}' not in found.place else ''}"


def amounts(cause: Cause) -> list[str]:
    """How large a difference is and how much of the gap it is, in words."""
    of = cause.finding
    parts = []
    if of.value is not None and of.floor:  # what is exact says its numbers in words
        unit = f" {of.unit}" if of.unit else ""
        parts.append(f"{of.value:,.4g}{unit}{_floor(of.floor, of.multiple)}")
    if cause.gap_closed is not None:
        parts.append(f"closes {_percent(cause.gap_closed)} of the gap")
    if cause.reproduces is not None:
        parts.append(f"opens {_percent(cause.reproduces)}")
    return parts


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _floor(floor: float | None, multiple: float | None) -> str:
    if not floor or multiple is None:
        return ""
    return f" (floor {floor:.3g}, {times(multiple)}x)"


def times(multiple: float) -> str:
    """How many times the floor, no more exact than that is known."""
    if multiple >= 1e6:
        return f"{multiple:.0e}".replace("e+", "e")
    return f"{multiple:,.0f}" if multiple >= 10 else f"{multiple:.2g}"


def rung_name(number: int) -> str:
    """What the ladder calls a rung."""
    from weft.diagnose.ladder import RUNGS

    return next((rung.name for rung in RUNGS if rung.number == number), "")


def coverage(found: Diagnosis) -> list[str]:
    """What both sides held, and what it took."""
    lines = [f"{side}: {_held(found.coverage[side])}" for side in "AB" if side in found.coverage]
    forwards = f", {found.forwards:,} forwards" if found.forwards else ", no forward"
    return [*lines, f"{found.seconds:.1f} s{forwards}"]


def _held(held: Mapping[str, Any]) -> str:
    parts = [str(held.get("kind", ""))]
    for name, count in held.items():
        if isinstance(count, int) and count:
            one = name.removesuffix("es" if name == "passes" else "s")
            parts.append(f"{count:,} {name if count > 1 else one}")
    if checks := held.get("checks"):
        parts.append(f"self-checks {', '.join(dict.fromkeys(checks))}")
    return shown(", ".join(part for part in parts if part))
