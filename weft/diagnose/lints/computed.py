"""What came out: is it finite, and does a side agree with itself where it must?"""

from __future__ import annotations

import math

from weft.diagnose.lints.lint import Lint, Lints, State
from weft.diagnose.rungs.validity import dropping, failed_checks, overflow
from weft.diagnose.sides.evidence import Evidence
from weft.diagnose.words import counted
from weft.runs.evidence import Check, Pass

FLOAT16 = 65504.0
"""The largest number of float16."""

AGAIN = {
    "repeat": ("the same input twice", "call eval() on the model, or seed what it draws"),
    "row": (
        "a row alone and in its batch",
        "pass attention mask and position ids that leave padding out",
    ),
    "cache": (
        "decoding with the cache and without it",
        "look at what is passed with a cache: positions, mask, the cache of the step before",
    ),
    "split": ("a batch at once and in parts", "divide by the tokens of the whole batch"),
}


def look(side: Evidence) -> Lints:
    """All of it."""
    yield from _status(side)
    yield from _finite(side)
    yield from _dropout(side)
    yield from _checks(side)


def _status(side: Evidence) -> Lints:
    status = side.about.get("status")
    error = side.about.get("error")
    if status in ("failed", "interrupted", "recording", "running"):
        told = f": {error}" if error else ""
        cut = {"recording": "was cut off", "running": "did not end"}
        cut["interrupted"] = "was interrupted"
        words = f"the {side.kind} {cut.get(str(status), str(status))}{told}"
        state: State = "problem" if status == "failed" else "warning"
        yield Lint("status", state, words, value=str(status))
    elif status is not None:
        yield Lint("status", "ok", f"the {side.kind} {status}", value=str(status))
    ended = status != "running"  # what goes on writes what it computed at its end
    computed = side.passes or side.steps or side.generations
    if ended and side.kind in ("run", "recording") and not computed:
        yield Lint(
            "status",
            "problem",
            "nothing was computed: no pass of a model, no step, no text",
            value=0,
            fix="does it call a model, with PyTorch or MLX, and in this process?",
        )


def _finite(side: Evidence) -> Lints:
    found = overflow(side)
    broken = None if found is None else found.seen
    losses = [(each.step, each.loss) for each in side.steps if each.loss is not None]
    bad = next((step for step, loss in losses if not math.isfinite(loss)), None)
    if broken is not None:
        yield Lint(
            "finite",
            "problem",
            f"the first module whose output is not finite is {broken.nonfinite} (pass "
            f"{broken.index}, {broken.dtype}){_before(broken)}",
            value=str(broken.nonfinite),
            place=str(broken.nonfinite),
            where=broken.where,
            fix="compute in bfloat16 or float32" if "float16" in _short(broken) else None,
        )
    elif bad is not None:
        yield Lint(
            "finite",
            "problem",
            f"the loss of step {bad} is not finite",
            value=bad,
            place=f"step {bad}",
            fix="a lower rate, clipping, or a step without supervised tokens",
        )
    elif side.passes or losses:
        yield Lint(
            "finite", "ok", f"all values of {_passes(len(side.passes))}" + _and_losses(len(losses))
        )


def _passes(number: int) -> str:
    return counted(number, "pass", "passes")


def _and_losses(number: int) -> str:
    return f", and {counted(number, 'loss', 'losses')}" if number else ""


def _short(seen: Pass) -> str:
    return seen.dtype.removeprefix("torch.")


def _before(seen: Pass) -> str:
    """The largest magnitude before it, where that says why."""
    if not seen.largest:
        return ""
    name, value = max(seen.largest.items(), key=lambda each: each[1])
    limit = f", of at most {FLOAT16:,.0f} in float16" if _short(seen) == "float16" else ""
    return f"; the largest number before it is {value:,.5g} at {name}{limit}"


def _dropout(side: Evidence) -> Lints:
    free = [each for each in side.passes if not each.grad]
    dropped = dropping(side)
    if dropped:
        first = dropped[0]
        yield Lint(
            "mode",
            "problem",
            f"dropout is active in {len(dropped)} of {_passes(len(free))} without gradients "
            f"({counted(first.dropouts, 'module')})",
            value=first.dropouts,
            where=first.where,
            fix="model.eval() before scoring or generating",
        )
    elif free:
        loud = sum(each.training for each in free)
        words = f"no dropout in {_passes(len(free))} without gradients"
        yield Lint("mode", "ok", words + f" ({loud} of them in training mode)" * bool(loud))


def _checks(side: Evidence) -> Lints:
    failed = {each.name: each for each in failed_checks(side)}
    for name, (what, fix) in AGAIN.items():
        if name != "repeat" and "repeat" in failed:
            continue  # it agrees with itself in nothing
        done = [each for each in side.checks if each.name == name and _measured(each)]
        if name in failed and _measured(failed[name]):
            value = max(failed[name].values)
            unit = "nats" if failed[name].unit == "nats" else f"({failed[name].unit})"
            words = f"{what} differ by {value:.1g} {unit}, more than rounding gives"
            yield Lint(f"self-check: {name}", "problem", words, value=value, fix=fix)
        elif done:  # what is not finite is told by itself
            check = min(done, key=lambda each: each.unit != "nats")
            value = max(check.values)
            size = f"{value:.1g} {'nats' if check.unit == 'nats' else f'({check.unit})'}"
            yield Lint(f"self-check: {name}", "ok", f"{what} agree: {size} apart", value=value)


def _measured(check: Check) -> bool:
    return bool(check.values) and all(map(math.isfinite, check.values))
