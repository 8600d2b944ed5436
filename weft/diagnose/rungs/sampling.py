"""Rung 9: how tokens are chosen, with which random numbers, and when a text ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weft.diagnose.compare import noise
from weft.diagnose.compare.align import Said, completions
from weft.diagnose.compare.divergence import divergence
from weft.diagnose.finding import Finding, Looked, Outcome, Swap
from weft.diagnose.rungs.stopping import number_of, stop_rules
from weft.diagnose.sides.decoded import Step, steps_of
from weft.diagnose.sides.evidence import Evidence, Pair
from weft.diagnose.sides.samplers import FILTERS, Sampler, differing, one_filter, sampler_of
from weft.runs.evidence import Generation, TrainStep

RUNG = 9

Rows = Sequence[tuple[Said, Said]]


def look(pair: Pair) -> Looked:
    """Compare samplers, stop rules and generators, then what was said."""
    rows = completions(pair).pairs
    if not rows:
        lacking = [name for name, side in pair.sides if not side.generations]
        return Looked(unseen=(f"sampling: no text was generated in {' and '.join(lacking)}",))
    a, b = rows[0]
    samplers = sampler_of(pair.a, a.of), sampler_of(pair.b, b.of)
    looks = [
        _sampler(pair, a.of, b.of, *samplers),
        stop_rules(rows),
        _seed(pair, a.of, b.of, samplers),
    ]
    told = _tokens(pair, rows, any(f.nature == "factor" for each in looks for f in each.findings))
    return Looked(
        findings=tuple(f for each in (*looks, told) for f in each.findings),
        equal=tuple(words for each in (*looks, told) for words in each.equal),
        unseen=tuple(words for each in (*looks, told) for words in each.unseen),
        outcome=told.outcome,
    )


def _sampler(pair: Pair, a: Generation, b: Generation, of_a: Sampler, of_b: Sampler) -> Looked:
    keys = differing(of_a, of_b)
    if keys and FILTERS.issuperset(keys) and one_filter((pair.a, a), (pair.b, b)):
        keys = ()
    if not keys:
        if of_a.greedy is None or of_b.greedy is None:
            return Looked(unseen=("sampler: how tokens were chosen was not seen",))
        idle = _idle(a, b, of_a)
        return Looked(idle, equal=(f"sampler equal: {of_a.words}",))
    numbers = [number_of(side.values.get(keys[0])) for side in (of_a, of_b)]
    words = f"A {of_a.words}; B {of_b.words}"
    if keys == ("logits",):
        words = (
            f"greedy choices that are not the most likely token: {of_a.altered} in A, "
            f"{of_b.altered} in B: logits are altered before the choice (a penalty or processor)"
        )
    elif keys == ("kept",):
        words = (
            f"tokens that could be drawn: {of_a.kept or 'all'} in A, {of_b.kept or 'all'} in B "
            "(a filter that no setting shows)"
        )
    elif keys == ("order of filters",):
        words = f"filters come before the temperature in {'A' if of_a.first_filters else 'B'} only"
    return Looked(
        (
            Finding(
                RUNG,
                "factor",
                "sampler",
                "sampler",
                words,
                value=numbers[0],
                other=numbers[1],
                unit=keys[0],
                where=b.where or a.where,
                fix=f"give both the same {', '.join(keys)}",
                swap=Swap("sampler", keys),
            ),
        )
    )


def _idle(a: Generation, b: Generation, sampler: Sampler) -> tuple[Finding, ...]:
    """Settings of the sampler that differ and that a greedy choice does not read."""
    if not sampler.greedy:
        return ()
    keys = [
        key
        for key in ("temperature", "top_k", "top_p", "min_p")
        if a.settings.get(key) != b.settings.get(key)
    ]
    if not keys:
        return ()
    words = f"{', '.join(keys)} differ, which a greedy choice does not read"
    return (Finding(RUNG, "harmless", "sampler", "sampler", words),)


def _seed(pair: Pair, a: Generation, b: Generation, samplers: tuple[Sampler, Sampler]) -> Looked:
    """Random numbers, where anything is drawn with them."""
    seeds = [_seeds(side, generation) for side, generation in ((pair.a, a), (pair.b, b))]
    shown = [_seeded(each) for each in seeds]
    if all(each.greedy for each in samplers):
        words = f"seeds differ ({shown[0]} in A, {shown[1]} in B), and no token is drawn"
        idle = (Finding(RUNG, "harmless", "seed", "seed", words),) if seeds[0] != seeds[1] else ()
        return Looked(idle)
    states = a.random, b.random
    if None not in states and states[0] == states[1]:
        return Looked(equal=("the generator's state is equal before the first draw",))
    if None in states and seeds[0] and seeds[0] == seeds[1]:
        return Looked(equal=(f"seeds equal: {shown[0]}",))
    words = f"random numbers differ at the first draw: {shown[0]} in A, {shown[1]} in B"
    lacking = [name for name, each in zip("AB", seeds, strict=True) if not each]
    alike = bool(seeds[0]) and seeds[0] == seeds[1]
    if alike:
        words += "; the generator was used differently before it"
    return Looked(
        (
            Finding(
                RUNG,
                "effect" if alike and _adapters_differ(pair) else "factor",
                "seed",
                "seed",
                words,
                value=_only(seeds[0]),
                other=_only(seeds[1]),
                unit="seed",
                where=b.where or a.where,
                fix=f"set a seed in {' and '.join(lacking)}" if lacking else "set the same seed",
                swap=Swap("seed"),
            ),
        )
    )


def _adapters_differ(pair: Pair) -> bool:
    """Whether the making of adapters drew other amounts of random numbers."""
    forms = [
        {
            (name, module.rank)
            for shot in side.snapshots[:1]
            for name, module in shot.modules.items()
        }
        for _, side in pair.sides
    ]
    return forms[0] != forms[1]


def _seeds(side: Evidence, generation: Generation) -> dict[str, int]:
    """By library, the last seed set before a generation."""
    found: dict[str, int] = {}
    for each in side.events:
        if each is generation:
            break
        if each.kind == "seeded":
            found[each.library] = each.seed
    return found


def _seeded(seeds: Mapping[str, int]) -> str:
    if not seeds:
        return "no seed"
    return ", ".join(f"{library} seed {seed}" for library, seed in sorted(seeds.items()))


def _only(seeds: Mapping[str, int]) -> float | None:
    return float(next(iter(seeds.values()))) if len({*seeds.values()}) == 1 else None


@dataclass(frozen=True)
class Parting:
    """Where two texts first differ."""

    prompt: int
    token: int  # from 1
    a: int | None  # None: the text had ended
    b: int | None
    margin: float | None  # in A, nats
    kl: float | None
    by_noise: bool
    other_state: bool  # drawn, from generators in other states or in states that are not known


def _tokens(pair: Pair, rows: Rows, choosing: bool) -> Looked:
    """The first differing token; a flip that noise can make is no difference."""
    slack, limit = 2 * noise.logit_floor(pair).value, noise.floor(pair, "nats").value
    found = [
        parting
        for number, (x, y) in enumerate(rows, start=1)
        if (parting := _parting(number, x, y, slack, limit)) is not None
    ]
    own = [each for each in found if choosing or not each.by_noise]
    trained = any(isinstance(event, TrainStep) for _, side in pair.sides for event in side.events)
    rungs = tuple(range(12)) if trained else tuple(range(RUNG + 1))
    equal = f"{len(rows) - len(found)} of {len(rows)} texts are equal"
    flips = f"; {len(found) - len(own)} part at a margin that noise closes"
    words = equal + (flips if len(own) < len(found) else "")
    if found:
        words += f"; first differing token: {_told(min(own or found, key=_early))}"
    outcome = Outcome(
        "tokens", len(own) / len(rows), 0.0, "share", words, len(own), len(rows), rungs
    )
    if not own:
        return Looked(equal=(words,), outcome=(outcome,))
    first = min(own, key=_early)
    chosen = first.kl is not None and first.kl <= limit
    finding = Finding(
        RUNG,
        "effect" if choosing or not chosen or first.other_state else "factor",
        "unknown" if not chosen else "seed" if first.other_state else "sampler",
        f"prompt {first.prompt}, token {first.token}",
        f"texts part at {_told(first)}" + ("; the distributions are equal" if chosen else ""),
        step=first.token,
        value=len(own) / len(rows),
        floor=0.0,
        unit="share of texts",
    )
    return Looked((finding,), outcome=(outcome,))


def _early(each: Parting) -> tuple[int, int]:
    return each.token, each.prompt


def _told(each: Parting) -> str:
    said = " and ".join("the end" if token is None else str(token) for token in (each.a, each.b))
    margin = "" if each.margin is None else f", margin {each.margin:.2g} nats"
    return f"prompt {each.prompt}, token {each.token} ({said}{margin})"


def _parting(number: int, x: Said, y: Said, slack: float, limit: float) -> Parting | None:
    if x.tokens == y.tokens:
        return None
    shared = min(len(x.tokens), len(y.tokens))
    at = next((i for i in range(shared) if x.tokens[i] != y.tokens[i]), shared)
    a, b = (said.tokens[at] if at < len(said.tokens) else None for said in (x, y))
    step_a, step_b = (_step(said, at) for said in (x, y))
    margin, kl, by_noise = None, None, False
    drawn = not (_greedy(x) and _greedy(y))
    same_state = x.of.random is not None and x.of.random == y.of.random
    logits_a, logits_b = (None if step is None else step.logits for step in (step_a, step_b))
    if logits_a is not None and logits_b is not None and logits_a.shape == logits_b.shape:
        kl = float(divergence(logits_a[None], logits_b[None]).kl[0])
        if a is not None and b is not None:
            margin = float(logits_a[a]) - float(logits_a[b])
            greedy = a == int(logits_a.argmax()) and b == int(logits_b.argmax())
            likely = abs(margin) <= slack if greedy else drawn and same_state
            by_noise = kl <= 3 * limit and likely
    return Parting(number, at + 1, a, b, margin, kl, by_noise, drawn and not same_state)


def _greedy(said: Said) -> bool:
    hows = {draw.how for draw in said.of.draws if draw.row == said.number} - {"unknown"}
    return hows == {"argmax"} if hows else bool(said.of.settings.get("greedy"))


def _step(said: Said, at: int) -> Step | None:
    steps = steps_of(said.side, said.of, said.number)
    return steps[at] if at < len(steps) else None
