"""Proof by taking runs of Weft again: B's configuration with A's settings, and vice versa.

A run is determined by its configuration, whatever its method. So its first steps, taken again, must
be the recorded ones (the control); settings are then exchanged, and what is learned is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.diagnose.finding import Cause, Finding, Swap
from weft.diagnose.proof.as_recorded import Side, control, refuse_changed
from weft.diagnose.proof.docket import Docket, settle, tried
from weft.diagnose.proof.floors import RELATIVE, Floor
from weft.diagnose.proof.forward import Engine, Unspliced
from weft.diagnose.proof.replica import BaseValue, Replica
from weft.diagnose.proof.rerun import Rerun, Taken, alike, first_apart, named
from weft.diagnose.proof.settings import Setup, differing, leaves_of
from weft.diagnose.proof.solve import Shown, Solved, Trial, solve
from weft.diagnose.proof.training import distance
from weft.diagnose.rungs.keys import meaning
from weft.diagnose.sides.evidence import Pair
from weft.diagnose.words import counted
from weft.training.state import State

STEPS = 3
"""Steps that are taken again, if the first difference is not later."""

SECONDS = 10.0
"""Within so many, A's steps are taken again; fewer of them where that is too short."""

EXCHANGES = 30.0
"""All exchanges together take about so many seconds at most."""

NULLS = 2
"""Draws that move embeddings by one unit in the last place."""

TRAINING = (2, 3, 4, 5, 10, 11)
"""Rungs whose differences can act on training."""

SCALING = ("adapter.rank", "adapter.alpha", "adapter.scale", "adapter.rslora")

MADE_OF = {
    2: frozenset({"prompt", "ids", "labels"}),
    3: frozenset({"base", "dtype"}),
    4: frozenset({"adapter", "attach", "init", "trainable"}),
    5: frozenset({"adapter", "scale"}),
}
"""By rung, factors of the settings that what is compared there comes from: a file of rows may hold
other labels, a base's directory another head, an adapter's other numbers."""


@dataclass(frozen=True, eq=False)
class Retaken:
    """What taking runs again showed."""

    steps: int
    since: int  # exchanges go on from the state that both have after so many steps
    floor: Floor
    solved: Solved
    holds: tuple[bool, bool]
    words: tuple[str, ...]
    others: tuple[int, ...] = ()  # causes that are exchanged together with one above them
    unmatched: tuple[int, ...] = ()  # causes of these steps that no setting stands for
    setups: tuple[Setup, Setup] | None = None


def retake(
    engine: Engine, pair: Pair, causes: Sequence[Cause], key: Key, told: Callable[[str], None]
) -> Retaken | None:
    """Take both runs again, as they were and with settings exchanged; None for other sides.

    Raises `Unspliced` with the reason where base, data, reward or time are not there for it.
    """
    if {pair.a.kind, pair.b.kind} != {"run"}:
        return None
    a, b = (Side.of(name, side) for name, side in pair.sides)
    if not a.lines or not b.lines:
        return None
    with Rerun(engine) as rerun:
        return _Proof(rerun, a, b.sharing(a), causes, key, told).made()


class _Proof:
    def __init__(
        self,
        rerun: Rerun,
        a: Side,
        b: Side,
        causes: Sequence[Cause],
        key: Key,
        told: Callable[[str], None],
    ) -> None:
        self.rerun, self.a, self.b = rerun, a, b
        self.causes, self.key, self.told = causes, key, told

    def made(self) -> Retaken:
        for side in (self.a, self.b):
            refuse_changed(side, named(self.rerun, side.name, side.setup))
        first, wanted = self._length()
        since = first - 2 if first is not None and first > 3 else None
        self.told("taking A's steps again")
        own = self.rerun.take(self.a.setup, wanted, keep=since, seconds=SECONDS)
        steps = own.state.step
        least = min(first or 1, wanted)
        ended = own.learned is None or steps >= named(self.rerun, "A", self.a.setup).steps
        if steps < least and not ended:
            raise Unspliced(
                f"the runs part at step {least}, and {counted(steps, 'step')} took "
                f"{own.seconds:.0f} seconds"
            )
        steps = max(steps, least) if steps < wanted else wanted
        self.told("taking B's steps again")
        its = self.rerun.take(self.b.setup, steps, keep=since)
        checks = [
            control(self.rerun, self.a, own, self.key),
            control(self.rerun, self.b, its, self.key),
        ]
        holds = checks[0][0], checks[1][0]
        words = tuple(each for _, each in checks)
        if not all(holds) or own.learned is None:
            nothing = Solved(0.0, 0.0, RELATIVE)
            return Retaken(steps, 0, Floor(RELATIVE, ()), nothing, holds, words)
        start = _shared(own, its)
        trials, others = self._trials()
        steps = self._affordable(own, start, steps, least, trials)
        return self._solved(own, its, start, steps, trials, others, holds, words)

    def _length(self) -> tuple[int | None, int]:
        """The first step that differs, and how many are to be taken."""
        first = first_apart(self.a.lines, self.b.lines)
        late = [c.finding.step or 0 for c in self.causes if c.finding.rung in TRAINING]
        longest = max(len(self.a.lines), len(self.b.lines))
        return first, min(longest, max(STEPS, (first or 0) + 1, max(late, default=0) + 1))

    def _affordable(
        self, own: Taken, start: State | None, steps: int, least: int, trials: Sequence[Trial]
    ) -> int:
        """How many steps every exchange can take."""
        begin = start.step if start is not None else 0
        a_step = own.seconds / max(1, len(own.lines))
        courses = NULLS + 1 + (2 * len(trials) + 2 if len(trials) > 1 else 0)
        courses += 2 if begin else 0
        can = begin + int(EXCHANGES / (courses * a_step)) if a_step else steps
        if can < least:
            raise Unspliced(
                f"the runs part at step {least}, and {counted(courses, 'course')} of "
                f"{counted(least - begin, 'step')} would take "
                f"{courses * (least - begin) * a_step:.0f} seconds"
            )
        return min(steps, can)

    def _solved(
        self,
        own: Taken,
        its: Taken,
        start: State | None,
        steps: int,
        trials: Sequence[Trial],
        others: tuple[int, ...],
        holds: tuple[bool, bool],
        words: tuple[str, ...],
    ) -> Retaken:
        begin = start.step if start is not None else 0
        known: dict[str, Taken] = {}
        for side, taken in ((self.a, own), (self.b, its)):
            if not begin and taken.state.step == min(steps, self.rerun.job(side.setup).steps):
                known[side.setup.key] = taken

        def again(setup: Setup, nudge: Key | None = None) -> Taken:
            if nudge is not None:
                return self.rerun.take(setup, steps, since=start, nudge=nudge)
            if setup.key not in known:
                known[setup.key] = self.rerun.take(setup, steps, since=start)
            return known[setup.key]

        mine = again(self.a.setup).learned
        assert mine is not None

        def apart(taken: Taken) -> float:
            return float("inf") if taken.learned is None else distance(mine, taken.learned)

        self.told("measuring noise")
        draws = [apart(again(self.a.setup, self.key.fold("null", n))) for n in range(NULLS)]
        draws.append(apart(again(self.a.setup.split())))
        floor = Floor.of(draws, RELATIVE)
        a, b = (Replica(x.name, BaseValue(None), setup=x.setup) for x in (self.a, self.b))

        def from_a(replica: Replica) -> float:
            assert replica.setup is not None
            return apart(again(replica.setup))

        solved = solve(a, b, trials, from_a, floor.value, self.told)
        both = self.a.setup, self.b.setup
        known_ones = {*others, *(each.cause for each in trials)}
        unmatched = tuple(
            number
            for number, cause in enumerate(self.causes)
            if number not in known_ones
            and cause.finding.rung in TRAINING
            and (cause.finding.step or 0) <= steps
        )
        return Retaken(steps, begin, floor, solved, holds, words, others, unmatched, both)

    def _trials(self) -> tuple[list[Trial], tuple[int, ...]]:
        """Exchanges of settings that differ, each with the cause that it is of; and causes that
        are of the same exchange as one above them.
        """
        groups = self._groups()
        of: dict[int, list[int]] = {}
        for number, cause in enumerate(self.causes):
            found = self._group_of(cause.finding, groups)
            if found is not None:
                of.setdefault(found, []).append(number)
        trials = [
            Trial("settings", group, cause=of[n][0] if n in of else None)
            for n, group in enumerate(groups)
        ]
        return trials, tuple(number for its in of.values() for number in its[1:])

    def _groups(self) -> list[tuple[str, ...]]:
        """Keys that differ; those that cannot be exchanged alone together with others."""
        keys = differing(self.a.setup, self.b.setup)
        scaled = tuple(key for key in keys if key in SCALING)
        scales = {each.setup.config.adapter.effective_scale for each in (self.a, self.b)}
        one = scaled if len(scales) == 1 else ()  # alpha that only keeps the scale of a rank
        groups = [(key,) for key in keys if key not in one] + ([one] if one else [])
        while True:
            alone = next((each for each in groups if not self._possible(each)), None)
            if alone is None or len(groups) == 1:
                return groups
            rest = [each for each in groups if each is not alone]
            partner = next((each for each in rest if self._possible(alone + each)), rest[0])
            groups = [alone + each if each is partner else each for each in rest]

    def _possible(self, keys: Sequence[str]) -> bool:
        for to, other in ((self.a.setup, self.b.setup), (self.b.setup, self.a.setup)):
            made = to.with_(keys, other)
            try:
                if made.problem is not None:
                    return False
                self.rerun.job(made)
            except InputError:
                return False
        return True

    def _group_of(self, finding: Finding, groups: Sequence[tuple[str, ...]]) -> int | None:
        """The exchange that a finding is about: by its key, label, factor, or else its rung."""
        if finding.rung not in (1, *TRAINING):
            return None
        places = {finding.place, *(finding.swap.places if finding.swap is not None else ())}
        leaves = [self._leaves(group) for group in groups]
        known = [[meaning(leaf) for leaf in each] for each in leaves]
        factor = finding.swap.factor if finding.swap is not None else None
        made = MADE_OF.get(finding.rung, frozenset())
        for fits in (
            [bool(places & {*group, *each}) for group, each in zip(groups, leaves, strict=True)],
            [finding.label in {each.label for each in its} for its in known],
            [factor is not None and factor in {each.swap for each in its} for its in known],
            [not made.isdisjoint(each.swap for each in its) for its in known],
        ):
            if any(fits):
                return fits.index(True)
        return None

    def _leaves(self, group: Sequence[str]) -> list[str]:
        return [leaf for key in group for leaf in leaves_of(key, self.a.setup, self.b.setup)]


def _shared(own: Taken, its: Taken) -> State | None:
    """The state that both runs have, from which exchanges can go on."""
    if own.kept is None or its.kept is None or not alike(own.kept, its.kept):
        return None
    return own.kept


def tell(case: Docket, retaken: Retaken) -> None:
    """Give causes what exchanging settings showed."""
    solved = retaken.solved
    pairs = list(zip(retaken.words, retaken.holds, strict=True))
    case.ruled_out += [words for words, fine in pairs if fine]
    case.not_checked += [words for words, fine in pairs if not fine]
    if not all(retaken.holds):
        return
    metric = f"after {counted(retaken.steps, 'step')} the update's relative distance"
    if solved.gap <= solved.floor:
        case.ruled_out.append(
            f"both configurations learn the same in {counted(retaken.steps, 'step')}: a relative "
            f"distance of {solved.gap:.2g} (floor {solved.floor:.2g})"
        )
    for shown in (*solved.accepted, *solved.others):
        if shown.trial.cause is not None:
            settle(case, shown, solved, True, "", metric)
        elif shown in solved.accepted:
            case.new.append((0.0, _new(retaken, shown, metric)))
    for number in retaken.others:
        case.idle[number] = "part of a cause above: they are exchanged together"
    if solved.gap > solved.floor and solved.closed:
        for number in retaken.unmatched:
            case.idle.setdefault(number, "it follows from the settings that were exchanged")
    if solved.gap > solved.floor and not solved.closed:
        case.not_checked.append(
            f"what is left of training after all exchanges of settings: a relative distance of "
            f"{solved.left:.2g} of {solved.gap:.2g} (floor {solved.floor:.2g})"
        )


def _new(retaken: Retaken, shown: Shown, metric: str) -> Cause:
    """A setting that nobody suspected."""
    assert retaken.setups is not None
    a, b = retaken.setups
    keys = shown.trial.places
    label = meaning(leaves_of(keys[0], a, b)[0]).label
    said = ", ".join(f"{key}: {_shown(a.at(key))} in A, {_shown(b.at(key))} in B" for key in keys)
    finding = Finding(
        1, "factor", label, keys[0], said, value=shown.opens, floor=retaken.floor.value,
        fix=f"set {' and '.join(keys)} alike in both", swap=Swap("settings", keys),
    )  # fmt: skip
    confidence = retaken.solved.confidence(shown)
    return tried(Cause(finding, confidence), shown, retaken.solved, confidence, "", metric)


def _shown(value: Any) -> str:
    words = str(value)
    return words if len(words) <= 60 else f"{words[:57]}..."
