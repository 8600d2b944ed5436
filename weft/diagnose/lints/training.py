"""The course of a training: does it learn, does the base stay, do merges come when they should?"""

from __future__ import annotations

from collections.abc import Iterable

from weft.diagnose.compare import trail
from weft.diagnose.lints.lint import Lint, Lints
from weft.diagnose.sides.evidence import Evidence
from weft.diagnose.words import counted
from weft.runs.evidence import Happened

MERGES = frozenset({"merge", "commit"})
PERIODS = ("steps_per_iteration", "merge_every")
"""Settings, by their last parts, of how many steps there are between two merges."""


def look(side: Evidence) -> Lints:
    """All of it; nothing of sides that were not trained."""
    if not side.steps:
        return
    yield from _learns(side)
    yield from _base(side)
    yield from _merges(side)


def _learns(side: Evidence) -> Lints:
    steps = side.steps
    known = [each for each in steps if each.adapter]
    still = len(known) > 1 and len({each.adapter for each in known}) == 1
    blind = [each for each in steps if each.supervised == 0]
    flat = [each for each in steps if each.grad_norm == 0]
    if still:
        yield Lint(
            "learning",
            "problem",
            f"the adapter is the same after each of {counted(len(known), 'step')}",
            value=0,
            where=steps[0].where,
            fix="see whether the optimiser has the adapter's parameters, and whether gradients (or "
            "rewards of members) differ from nothing at all",
        )
    elif blind or flat:
        what = "no supervised token" if blind else "a gradient of 0"
        first = (blind or flat)[0]
        yield Lint(
            "learning",
            "problem" if len(blind or flat) == len(steps) else "warning",
            f"{len(blind or flat)} of {len(steps)} steps have {what}, step {first.step} first",
            value=len(blind or flat),
            place=f"step {first.step}",
            where=first.where,
        )
    else:
        losses = [each.loss for each in steps if each.loss is not None]
        course = f", loss {losses[0]:.4g} to {losses[-1]:.4g}" if losses else ""
        yield Lint("learning", "ok", f"{counted(len(steps), 'step')}{course}", value=len(steps))


def _base(side: Evidence) -> Lints:
    """Whether the base moved although nothing was merged into it."""
    merged = {each.step for each in side.happened if each.what in MERGES | {"edit"}}
    moved = [step for step in trail.moves(side.steps) if not {step, step - 1} & merged]
    after = sorted({each.step for each in side.weights[1:] if each.step} - merged)
    changed = moved or [step for step in after if not merged]
    trainable = any(each.trainable.get("base", 0) for each in side.snapshots)
    if changed:
        yield Lint(
            "base unchanged",
            "problem",
            f"the base's weights are others after step {changed[0]}, and nothing was merged"
            + (": some of them are trained" if trainable else ""),
            value=changed[0],
            place=f"step {changed[0]}",
            fix="requires_grad_(False) on the base before the optimiser is made",
        )
    elif any(each.base for each in side.steps):
        words = "change where it is edited only" if merged else "do not change"
        yield Lint("base unchanged", "ok", f"the base's weights {words}")


def _merges(side: Evidence) -> Lints:
    events = [each for each in side.happened if each.what in MERGES and each.step]
    declared = list(_periods(side))
    if not events:
        if declared and side.steps[-1].step >= declared[0][1]:
            key, period = declared[0]
            yield Lint(
                "merges",
                "problem",
                f"{key} is {period}, and nothing was merged in "
                f"{counted(side.steps[-1].step, 'step')}",
                value=0,
            )
        return
    steps = trail.when(events)
    rhythm = f"merged {trail.rhythm(steps)}"
    within = trail.when(trail.during(side, MERGES))  # the last step ends a round anyway
    wrong = [(key, period) for key, period in declared if any(step % period for step in within)]
    if wrong:
        key, period = wrong[0]
        first = next(step for step in within if step % period)
        yield Lint(
            "merges",
            "problem",
            f"{rhythm}, and {key} is {period}",
            value=first,
            place=f"step {first}",
            where=_line(events, first),
            fix=f"merge every {counted(period, 'step')}, or say what is meant",
        )
    else:
        yield Lint("merges", "ok", f"{rhythm}{_as_declared(declared)}", value=len(steps))


def _periods(side: Evidence) -> Iterable[tuple[str, int]]:
    for key, setting in sorted(side.settings.items()):
        value = setting.value
        if key.rpartition(".")[2] in PERIODS and isinstance(value, int) and value > 0:
            yield key, value


def _line(events: Iterable[Happened], step: int) -> str | None:
    return next((each.where for each in events if each.step == step), None)


def _as_declared(declared: Iterable[tuple[str, int]]) -> str:
    return "".join(f", as {key} {period} says" for key, period in declared)
