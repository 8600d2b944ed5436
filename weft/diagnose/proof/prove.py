"""Proof by exchange: is B, given A's value of a suspected factor, A; and A, given B's, B?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from weft.core.keys import Key
from weft.diagnose.evidence import Pair
from weft.diagnose.finding import Cause, Confidence, Diagnosis, Finding, Swap
from weft.diagnose.proof.build import Built, build
from weft.diagnose.proof.choosing import Exchange, choose, ends
from weft.diagnose.proof.counterfactuals import NAMES
from weft.diagnose.proof.forward import Engine, Unspliced
from weft.diagnose.proof.reading import FACTORS as READING
from weft.diagnose.proof.reading import Read, read
from weft.diagnose.proof.replica import Normaliser, Replica
from weft.diagnose.proof.solve import Shown, Solved, Trial
from weft.diagnose.proof.swaps import SWAPS
from weft.diagnose.proof.taught import Taught, teach
from weft.diagnose.proof.voices import Voices, spell_of

Watch = Callable[[int, int, str], None]

RUNG = {
    "prompt": 2, "ids": 2, "mask": 2, "positions": 2, "labels": 2, "base": 3, "dtype": 1,
    "trainable": 4, "attach": 4, "adapter": 5, "scale": 5, "mode": 0, "context": 8, "sampler": 9,
    "stop": 9, "seed": 9, "init": 10, "normaliser": 10, "optimiser": 10, "order": 11,
    "schedule": 11,
}  # fmt: skip
"""Where a factor belongs on the ladder, for causes that only the exchange found."""

ROUNDING, SEMANTIC = 0.2, 0.5
"""Shares of a 16-bit gap that are left in float32, of which the reference says so."""


@dataclass
class _Case:
    """What is known so far of each cause."""

    diagnosis: Diagnosis
    proven: dict[int, Cause] = field(default_factory=dict)
    effect: dict[int, float] = field(default_factory=dict)  # nats, to rank by
    idle: dict[int, str] = field(default_factory=dict)
    new: list[tuple[float, Cause]] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    ruled_out: list[str] = field(default_factory=list)


def prove(
    pair: Pair,
    diagnosis: Diagnosis,
    *,
    base: str | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> Diagnosis:
    """The diagnosis with its causes tried: replicas of both sides exchange what is suspected.

    A cause is proven if the exchange closes the gap and opens it, both within the noise that null
    transforms make here; supported if in one direction. Differences that nobody suspected are
    exchanged where suspects leave a gap. `base` is loaded in place of the base that the sides name.
    """
    case = _Case(diagnosis)
    key = Key.of(seed).fold("proof")
    engine = Engine(base)
    trials = list(_trials(diagnosis.causes))
    told = _teller(watch, len(trials))
    try:
        told("building replicas")
        built = build(pair, seed=seed)
        case.not_checked += built.not_checked
        _everything(pair, case, built, engine, trials, key, told)
    except Unspliced as reason:
        case.not_checked.append(f"no cause was exchanged: {reason}")
    return _concluded(case, engine.forwards)


def _everything(
    pair: Pair,
    case: _Case,
    built: Built,
    engine: Engine,
    trials: Sequence[Trial],
    key: Key,
    told: Callable[[str], None],
) -> None:
    taught = None
    try:
        taught = teach(engine, built.a, built.b, trials, key, told)
    except Unspliced as reason:
        case.not_checked.append(f"training was not taken again: {reason}")
    if taught is not None:
        _after_training(case, taught)
    if taught is not None and built.drawn:
        return  # what they learned says it all: neither reads anything besides
    if not built.a.rows:
        case.not_checked.append("predictions: neither side has prompts that both read")
        return
    found = read(engine, built, trials, key, told)
    _after_reading(case, found, taught, pair)
    _after_choosing(case, engine, found, built, told, pair)


def _trials(causes: Sequence[Cause]) -> Iterator[Trial]:
    for number, cause in enumerate(causes):
        swap = cause.finding.swap
        if swap is not None and swap.factor in SWAPS:
            decoding = swap.factor == "positions" and cause.finding.rung == RUNG["context"]
            yield Trial("context" if decoding else swap.factor, swap.places, swap.step, number)


def _teller(watch: Watch | None, trials: int) -> Callable[[str], None]:
    done = 0

    def told(words: str) -> None:
        nonlocal done
        if watch is not None:
            watch(done, max(done + 1, 6 + 3 * trials), words)
        done += 1

    return told


def _after_reading(case: _Case, found: Read, taught: Taught | None, pair: Pair) -> None:
    """Causes of what is predicted."""
    solved, unit = found.solved, "nats"
    case.ruled_out += [each.words for each in found.controls if each.holds and each.seen]
    unlike = [each for each in found.controls if not each.holds]
    case.not_checked += [_unlike(each.words, found, each.name) for each in unlike]
    files = {pair.a.kind, pair.b.kind} <= {"adapter", "config"}
    sure = found.holds and (files or all(each.seen for each in found.controls))
    trained = taught is not None and taught.solved.gap > taught.solved.floor
    for shown in (*solved.accepted, *solved.others):
        accepted = shown in solved.accepted
        if shown.trial.cause is None:
            if accepted and not (trained and shown.trial.factor in ("adapter", "init", "base")):
                _add(case, found, shown, sure)
            continue
        nothing = max(shown.opens, abs(shown.alone - solved.gap)) <= 3 * solved.floor
        if not accepted and sure and (nothing or solved.closed):
            case.idle[shown.trial.cause] = (
                f"exchanging it changes no prediction: mean KL {shown.opens:.2g} nats"
                if nothing
                else "nothing is left of the gap once the other causes are exchanged"
            )
            continue
        _settle(case, shown, solved, sure, unit, "mean KL", by_nats=True)
    _fold(case, [shown.trial for shown in solved.accepted])
    live = {shown.trial.cause for shown in (*solved.accepted, *solved.others)} | set(case.idle)
    for number, cause in enumerate(case.diagnosis.causes):
        factor = cause.finding.swap.factor if cause.finding.swap else None
        if factor in READING and number not in live and number not in case.proven:
            if solved.gap <= solved.floor and sure and taught is None:
                case.idle[number] = (
                    f"both replicas predict the same: mean KL {solved.gap:.2g} nats, "
                    f"floor {solved.floor:.2g}"
                )
            elif solved.gap > solved.floor and taught is None:
                case.not_checked.append(
                    f"{cause.finding.label}: the replicas do not differ in it, so nothing could "
                    "be exchanged"
                )
    if solved.gap > solved.floor and not solved.closed:
        case.not_checked.append(
            f"what is left after all exchanges: mean KL {solved.left:.2g} of {solved.gap:.2g} "
            f"nats (floor {solved.floor:.2g})"
        )
    if found.in_float32 is not None:
        case.ruled_out.append(_precision(found.in_float32, solved.gap))


def _fold(case: _Case, accepted: Sequence[Trial]) -> None:
    """A factor that was found in several places is one cause."""
    for number, cause in enumerate(case.diagnosis.causes):
        swap = cause.finding.swap
        same = [
            each for each in _trials(case.diagnosis.causes)
            if each.cause == number
            for trial in accepted
            if trial.cause not in (None, number)
            and (trial.factor, trial.places) == (each.factor, each.places)
        ]  # fmt: skip
        if swap is not None and same:
            case.idle[number] = "part of a cause above: they are exchanged together"


def _unlike(words: str, found: Read, name: str) -> str:
    layer = found.departs.get(name)
    if layer is None:
        return words
    where = "in its embedding" if layer == 0 else f"in block {layer - 1}"
    return f"{words}; its hidden states first depart {where}"


def _precision(in_float32: float, gap: float) -> str:
    share = in_float32 / gap
    said = f"with both bases in float32 {share:.0%} of the gap is left"
    if share < ROUNDING:
        return f"{said}: it is rounding"
    return f"{said}: it is not rounding" if share > SEMANTIC else f"{said}: it is rounding in part"


def _settle(
    case: _Case,
    shown: Shown,
    solved: Solved,
    sure: bool,
    unit: str,
    metric: str,
    *,
    by_nats: bool = False,
) -> None:
    """Give a suspected cause what its exchange showed."""
    number = shown.trial.cause
    assert number is not None
    confidence: Confidence = solved.confidence(shown)
    if confidence == "proven" and not sure:
        confidence = "supported"
    before = case.proven.get(number)
    if before is not None and before.confidence == "proven":
        return
    cause = case.diagnosis.causes[number]
    case.proven[number] = _tried(cause, shown, solved, confidence, unit, metric)
    if by_nats:
        case.effect[number] = shown.opens


def _tried(
    cause: Cause, shown: Shown, solved: Solved, confidence: Confidence, unit: str, metric: str
) -> Cause:
    alone = shown in solved.accepted and len(solved.accepted) == 1
    closed = solved.gap - shown.alone if alone else max(shown.took, 0.0)
    floor = f"(floor {solved.floor:.2g})"
    name = shown.trial.factor
    proof = [
        f"B with A's {name}: {metric} {solved.gap:.3g} -> {shown.alone:.3g} {unit} {floor}",
        f"A with B's {name}: {metric} 0 -> {shown.opens:.3g} {unit}",
    ]
    if shown.without is not None and not alone:
        proof.append(
            f"B with all of A's causes but {name}: {metric} {shown.without:.3g} {unit}, "
            f"with it {solved.left:.3g}"
        )
    return replace(
        cause,
        confidence=confidence,
        gap_closed=_share(closed, solved.gap),
        reproduces=_share(shown.opens, solved.gap),
        proof=tuple(proof),
    )


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


def _add(case: _Case, found: Read, shown: Shown, sure: bool) -> None:
    """A cause that nobody suspected: of a guess that mends a replica, or of what the sides hold."""
    factor = shown.trial.factor
    side, guess = next(
        ((name, each) for name, each in found.guessed.items() if each.factor == factor),
        (None, None),
    )
    confidence = found.solved.confidence(shown)
    if not sure and confidence == "proven":
        confidence = "supported"
    words = (
        f"{side} {guess.words}, which its recording does not say"
        if guess is not None
        else f"A and B differ in {factor}"
    )
    finding = Finding(
        RUNG[factor],
        "factor",
        guess.label if guess is not None else NAMES[factor],
        _place(factor, found.a),
        words,
        value=shown.opens,
        floor=found.solved.floor,
        unit="nats",
        swap=Swap(factor),
    )
    cause = _tried(Cause(finding, confidence), shown, found.solved, confidence, "nats", "mean KL")
    case.new.append((shown.opens, cause))


def _after_training(case: _Case, taught: Taught) -> None:
    """Causes of what is learned."""
    solved = taught.solved
    case.ruled_out += [w for w, fine in zip(taught.words, taught.holds, strict=True) if fine]
    case.not_checked += [w for w, fine in zip(taught.words, taught.holds, strict=True) if not fine]
    metric = f"after {taught.steps} steps the update's relative distance"
    for shown in (*solved.accepted, *solved.others):
        if shown.trial.cause is not None:
            _settle(case, shown, solved, all(taught.holds), "", metric)
        elif shown in solved.accepted:
            confidence = solved.confidence(shown) if all(taught.holds) else "supported"
            factor = shown.trial.factor
            finding = Finding(
                RUNG[factor], "factor", NAMES[factor], _place(factor, taught.a),
                _unlike_training(factor, taught), value=shown.opens,
                floor=solved.floor, swap=Swap(factor),
            )  # fmt: skip
            tried = _tried(Cause(finding, confidence), shown, solved, confidence, "", metric)
            case.new.append((0.0, tried))
    if solved.gap > solved.floor and not solved.closed:
        case.not_checked.append(
            f"what is left of training after all exchanges: a relative distance of "
            f"{solved.left:.2g} of {solved.gap:.2g} (floor {solved.floor:.2g})"
        )


def _place(factor: str, replica: Replica) -> str:
    """What a factor is a property of, where no rung has said it."""
    if factor in ("scale", "adapter", "attach", "init"):
        modules = replica.course.start if replica.course is not None else replica.adapter
        return f"all {len(modules)} adapted modules"
    if factor in ("ids", "prompt", "mask", "positions"):
        return f"all {len(replica.rows)} prompts"
    return {"context": "decoding", "base": "weights of the base"}.get(factor, factor)


RULES: dict[Normaliser, str] = {
    "mean": "the mean of the means of micro-batches",
    "mean-each": "the sum of the means of micro-batches",
    "sum": "the sum over tokens",
    "tokens": "the mean over all tokens of a step",
}


def _unlike_training(factor: str, taught: Taught) -> str:
    a, b = taught.a.course, taught.b.course
    if factor == "normaliser" and a is not None and b is not None:
        said = [
            RULES[each.normaliser] + (f" times {each.factor:.4g}" if each.factor != 1 else "")
            for each in (a, b)
        ]
        return f"the loss of a step is {said[0]} in A, {said[1]} in B"
    if factor == "scale" and a is not None and b is not None:
        both = [name for name in a.start if name in b.start and a.start[name].scale]
        ratios = {round(b.start[name].scale / a.start[name].scale, 4) for name in both}
        if len(ratios) == 1:
            return f"B's update is {ratios.pop():g} times as large as A's for the same factors"
    return f"A and B train with different {factor}"


def _after_choosing(
    case: _Case,
    engine: Engine,
    found: Read,
    built: Built,
    told: Callable[[str], None],
    pair: Pair,
) -> None:
    """Causes of which tokens come, beyond what is predicted."""
    by_factor = {
        cause.finding.swap.factor: number
        for number, cause in reversed(list(enumerate(case.diagnosis.causes)))
        if cause.finding.swap is not None
    }
    mended = found.solved.mended or found.b
    if "sampler" in by_factor:
        told("exchanging samplers")
        _exchanged(case, by_factor["sampler"], "sampler", choose(engine, found.a, mended))
    if "stop" in by_factor:
        told("exchanging stop rules")
        ended = ends(built.a, built.b, spell_of(built.a.base, built.a.stop, built.b.stop))
        _exchanged(case, by_factor["stop"], "stop rule", ended[0] if ended else None)
    if "seed" in by_factor:
        told("drawing again")
        voices = Voices(engine, pair, found.a, mended)
        _exchanged(case, by_factor["seed"], "seed", voices.seeds())


def _exchanged(case: _Case, number: int, name: str, made: Exchange | None) -> None:
    if made is None:
        case.not_checked.append(f"the {name} could not be exchanged: not enough of it was recorded")
        return
    closes = made.closes <= max(made.floor, (1 - 0.95) * made.gap)
    opens = made.opens > made.floor
    cause = case.diagnosis.causes[number]
    confidence: Confidence = (
        "proven" if closes and opens and made.gap > made.floor
        else "supported" if (closes or opens) and made.gap > made.floor
        else cause.confidence
    )  # fmt: skip
    case.proven[number] = replace(
        cause,
        confidence=confidence,
        gap_closed=_share(made.gap - made.closes, made.gap),
        reproduces=_share(made.opens, made.gap),
        proof=(
            f"B with A's {name}: {made.gap:.3g} -> {made.closes:.3g} {made.unit}",
            f"A with B's {name}: 0 -> {made.opens:.3g} {made.unit}",
        ),
    )
    if made.unit.startswith("nats"):
        case.effect[number] = made.opens


def _concluded(case: _Case, forwards: int) -> Diagnosis:
    """Causes with what was shown of them, by effect; those without any are set apart."""
    diagnosis = case.diagnosis
    ranked: list[tuple[tuple[float, int], Cause]] = []
    harmless = list(diagnosis.harmless)
    for number, cause in enumerate(diagnosis.causes):
        if number in case.idle and number not in case.proven:
            harmless.append(f"{cause.finding.words} ({case.idle[number]})")
            continue
        shown = case.proven.get(number, cause)
        ranked.append(((-case.effect.get(number, _unknown(case, number)), number), shown))
    ranked += [((-effect, 99), cause) for effect, cause in case.new]
    ranked.sort(key=lambda each: each[0])
    causes = tuple(cause for _, cause in ranked)
    if any(cause.confidence in ("proven", "supported") for cause in causes):
        causes = tuple(cause for cause in causes if cause.confidence != "unresolved")
    verdict = diagnosis.verdict
    if not causes and verdict == "different" and _same(diagnosis):
        verdict = "same"
    words = diagnosis.words
    if causes and causes[0].finding is not (diagnosis.causes or causes)[0].finding:
        more = f", and {len(causes) - 1} more" if len(causes) > 1 else ""
        words = f"{causes[0].finding.words}{more}"
    elif verdict == "same" != diagnosis.verdict:
        words = "A and B are the same within noise"
    return replace(
        diagnosis,
        verdict=verdict,
        words=words,
        causes=causes,
        first=None if verdict == "same" else diagnosis.first,
        harmless=tuple(harmless),
        ruled_out=(*diagnosis.ruled_out, *case.ruled_out),
        not_checked=tuple(dict.fromkeys((*diagnosis.not_checked, *case.not_checked))),
        forwards=forwards,
    )


def _unknown(case: _Case, number: int) -> float:
    """The effect of a cause that was not measured in nats: as large as the ladder ranks it."""
    known = [effect for n, effect in case.effect.items() if n > number]
    return max(known, default=0.0)


def _same(diagnosis: Diagnosis) -> bool:
    return bool(diagnosis.outcome) and all(each.apart == "same" for each in diagnosis.outcome)
