"""Proof by exchange: is B, given A's value of a suspected factor, A; and A, given B's, B?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from weft.core.keys import Key
from weft.diagnose.compare import noise
from weft.diagnose.finding import Cause, Confidence, Diagnosis, Finding, Swap
from weft.diagnose.labels import Label
from weft.diagnose.proof.build import Built, build
from weft.diagnose.proof.choosing import Exchange, choose, ends
from weft.diagnose.proof.counterfactuals import NAMES
from weft.diagnose.proof.docket import (
    RUNG,
    Docket,
    concluded,
    fold,
    settle,
    share,
    trials_of,
    tried,
)
from weft.diagnose.proof.forward import Engine, Unspliced
from weft.diagnose.proof.local import placed
from weft.diagnose.proof.merges import named
from weft.diagnose.proof.reading import FACTORS as READING
from weft.diagnose.proof.reading import Read, read
from weft.diagnose.proof.replica import Normaliser, Replica
from weft.diagnose.proof.rerunning import Retaken, retake, tell
from weft.diagnose.proof.solve import Shown, Trial
from weft.diagnose.proof.taught import Taught, teach
from weft.diagnose.proof.voices import Voices, spell_of
from weft.diagnose.sides.evidence import Pair
from weft.diagnose.words import counted

Watch = Callable[[int, int, str], None]

COMPUTED = (6, 7, 8)
"""Rungs at which what is computed is looked at: its differences have causes at others."""

EXPLAINED = "nothing is left of the gap once the other causes are exchanged"

LEAST = 1e-3
"""Relative distance of updates from which a difference that nobody suspected is told."""

ROUNDING, SEMANTIC = 0.2, 0.5
"""Shares of a 16-bit gap that are left in float32, of which the reference says so."""


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
    case = Docket(diagnosis)
    key = Key.of(seed).fold("proof")
    engine = Engine(base)
    told = _teller(watch, len(diagnosis.causes))
    try:
        if pair.a.kind == "config":
            raise Unspliced("configurations have computed nothing; train both, and give the runs")
        told("building replicas")
        built = build(pair, engine, seed=seed)
        case.not_checked += built.not_checked
        case.diagnosis = named(diagnosis, built.merge)
        trials = list(trials_of(case.diagnosis.causes))
        _everything(pair, case, built, engine, trials, key, told)
    except Unspliced as reason:
        case.not_checked.append(f"no cause was exchanged: {reason}")
    return concluded(case, engine.forwards)


def _everything(
    pair: Pair,
    case: Docket,
    built: Built,
    engine: Engine,
    trials: Sequence[Trial],
    key: Key,
    told: Callable[[str], None],
) -> None:
    retaken = taught = None
    try:
        retaken = retake(engine, pair, case.diagnosis.causes, key, told)
    except Unspliced as reason:
        case.not_checked.append(f"the runs were not taken again: {reason}")
    if retaken is not None:
        tell(case, retaken)
    if retaken is None or not all(retaken.holds):
        try:
            taught = teach(engine, built.a, built.b, trials, key, told)
        except Unspliced as reason:
            case.not_checked.append(f"training was not taken again: {reason}")
    if taught is not None:
        _after_training(case, taught)
    if (taught is not None or retaken is not None) and built.drawn:
        return  # what they learned says it all: neither reads anything besides
    if not built.a.rows:
        case.not_checked.append("predictions: neither side has prompts that both read")
        return
    found = read(engine, built, trials, key, told)
    _after_reading(case, found, taught or retaken, pair)
    _after_choosing(case, engine, found, built, told, pair)


def _teller(watch: Watch | None, trials: int) -> Callable[[str], None]:
    done = 0

    def told(words: str) -> None:
        nonlocal done
        if watch is not None:
            watch(done, max(done + 1, 6 + 3 * trials), words)
        done += 1

    return told


def _after_reading(case: Docket, found: Read, taught: Taught | Retaken | None, pair: Pair) -> None:
    """Causes of what is predicted."""
    solved, unit = found.solved, "nats"
    case.ruled_out += [each.words for each in found.controls if each.holds and each.seen]
    case.not_checked += found.floor.failed
    unlike = [each for each in found.controls if not each.holds]
    case.not_checked += [_unlike(each.words, found, each.name) for each in unlike]
    files = {pair.a.kind, pair.b.kind} <= {"adapter", "config"}
    sure = found.holds and (files or all(each.seen for each in found.controls))
    stepped = [bool(side.steps) for _, side in pair.sides]
    trained = stepped[0] != stepped[1] or (
        taught is not None and taught.solved.gap > taught.solved.floor
    )
    if stepped[0] != stepped[1]:
        case.not_checked.append("training: one side takes steps and the other none")
    elif any(stepped) and taught is None:
        case.not_checked.append("training was not taken again: too little of it was recorded")
    least = 3 * noise.floor(pair, "nats").value
    for shown in (*solved.accepted, *solved.others):
        accepted = shown in solved.accepted
        if shown.trial.cause is None:
            if (
                accepted
                and shown.opens > least
                and not (trained and shown.trial.factor in ("adapter", "init", "base"))
            ):
                _add(case, found, shown, sure)
            continue
        nothing = max(shown.opens, abs(shown.alone - solved.gap)) <= 3 * solved.floor
        if not accepted and sure and (nothing or solved.closed):
            case.idle[shown.trial.cause] = (
                f"exchanging it changes no prediction: mean KL {shown.opens:.2g} nats"
                if nothing
                else EXPLAINED
            )
            continue
        settle(case, shown, solved, sure, unit, "mean KL", by_nats=True)
        if shown.trial.factor == "context":
            _which_context(case, shown.trial.cause, found)
    fold(case, [shown.trial for shown in solved.accepted])
    live = {shown.trial.cause for shown in (*solved.accepted, *solved.others)} | set(case.idle)
    explained = solved.closed and solved.gap > solved.floor and sure
    for number, cause in enumerate(case.diagnosis.causes):
        factor = cause.finding.swap.factor if cause.finding.swap else None
        if number in live or number in case.proven:
            continue
        if factor is None and cause.finding.rung in COMPUTED and explained:
            case.idle[number] = EXPLAINED
        elif factor is None and cause.finding.rung in COMPUTED and found.local is not None:
            case.proven[number] = placed(cause, found.local)
        elif factor in READING and not any(stepped):
            if explained:
                case.idle[number] = EXPLAINED
            elif solved.gap <= solved.floor and sure:
                case.idle[number] = (
                    f"both replicas predict the same: mean KL {solved.gap:.2g} nats, "
                    f"floor {solved.floor:.2g}"
                )
            else:
                case.not_checked.append(
                    f"{cause.finding.label}: the replicas do not differ in it, so nothing could "
                    "be exchanged"
                )
    if solved.gap > solved.floor and not solved.closed:
        case.not_checked.append(
            f"what is left after all exchanges: mean KL {solved.left:.2g} of {solved.gap:.2g} "
            f"nats (floor {solved.floor:.2g}){f'; {found.local.words}' if found.local else ''}"
        )
    if found.in_float32 is not None:
        case.ruled_out.append(_precision(found.in_float32, solved.gap))


def _which_context(case: Docket, number: int, found: Read) -> None:
    """Decoding differs in what is seen, or in where it is seen: the replicas tell."""
    a, b = found.a.context, found.b.context
    shown_ = case.proven.get(number)
    if shown_ is None or shown_.confidence != "proven" or a.masked != b.masked:
        return
    where = (a.shift, a.origin) != (b.shift, b.origin)
    label: Label = "cache-pos" if a.visible == b.visible and where else "cache"
    if shown_.finding.label in ("cache", "cache-pos") and shown_.finding.label != label:
        finding = replace(shown_.finding, label=label)
        case.proven[number] = replace(shown_, finding=finding)


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


def _add(case: Docket, found: Read, shown: Shown, sure: bool) -> None:
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
    cause = tried(Cause(finding, confidence), shown, found.solved, confidence, "nats", "mean KL")
    case.new.append((shown.opens, cause))


def _after_training(case: Docket, taught: Taught) -> None:
    """Causes of what is learned."""
    solved = taught.solved
    case.ruled_out += [w for w, fine in zip(taught.words, taught.holds, strict=True) if fine]
    case.not_checked += [w for w, fine in zip(taught.words, taught.holds, strict=True) if not fine]
    metric = f"after {counted(taught.steps, 'step')} the update's relative distance"
    for shown in (*solved.accepted, *solved.others):
        if shown.trial.cause is not None:
            settle(case, shown, solved, all(taught.holds), "", metric)
        elif shown in solved.accepted and shown.opens > LEAST:
            confidence = solved.confidence(shown) if all(taught.holds) else "supported"
            factor = shown.trial.factor
            finding = Finding(
                RUNG[factor], "factor", NAMES[factor], _place(factor, taught.a),
                _unlike_training(factor, taught), value=shown.opens,
                floor=solved.floor, swap=Swap(factor),
            )  # fmt: skip
            cause = tried(Cause(finding, confidence), shown, solved, confidence, "", metric)
            case.new.append((0.0, cause))
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
    words = {"context": "decoding", "base": "weights of the base", "tied": "lm_head"}
    return words.get(factor, factor)


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
    case: Docket,
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
        made, number = voices.seeds(), by_factor["seed"]
        said = voices.agree() if made is None and found.solved.closed and found.holds else None
        if said is not None:
            cause = case.proven.get(number, case.diagnosis.causes[number])
            if cause.confidence == "located":
                case.proven[number] = replace(cause, confidence="supported", proof=(said,))
            case.not_checked.append(
                "the seed could not be exchanged: how it was drawn is not known"
            )
        elif made is not None or number not in case.proven:
            _exchanged(case, number, "seed", made)


def _exchanged(case: Docket, number: int, name: str, made: Exchange | None) -> None:
    if made is None:
        case.not_checked.append(f"the {name} could not be exchanged: not enough of it was recorded")
        return
    closes = made.closes <= max(made.floor, (1 - 0.95) * made.gap)
    opens = made.opens > made.floor
    cause = case.diagnosis.causes[number]
    if not opens and _modelled(cause.finding):
        case.idle[number] = f"exchanging it changes nothing: {made.opens:.2g} {made.unit}"
        return
    confidence: Confidence = (
        "proven" if closes and opens and made.gap > made.floor
        else "supported" if (closes or opens) and made.gap > made.floor
        else cause.confidence
    )  # fmt: skip
    case.proven[number] = replace(
        cause,
        confidence=confidence,
        gap_closed=share(made.gap - made.closes, made.gap),
        reproduces=share(made.opens, made.gap),
        proof=(
            f"B with A's {name}: {made.gap:.3g} -> {made.closes:.3g} {made.unit}",
            f"A with B's {name}: 0 -> {made.opens:.3g} {made.unit}",
        ),
    )
    if made.unit.startswith("nats"):
        case.effect[number] = made.opens


MODELLED = {"greedy", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
"""Of what samplers differ in, what replicas have: without effect there, it has none."""


def _modelled(finding: Finding) -> bool:
    assert finding.swap is not None
    return finding.swap.factor == "sampler" and MODELLED.issuperset(finding.swap.places)
