"""`weft doctor`: one run, recording or adapter by itself. Is anything about it odd?"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from weft.core.errors import InputError
from weft.diagnose.lints import adapter, computed, inputs, training
from weft.diagnose.lints.lint import Lint, Lints
from weft.diagnose.sides.evidence import Evidence
from weft.diagnose.sides.opening import open_evidence
from weft.diagnose.words import counted

LOOKS: tuple[Callable[[Evidence], Lints], ...] = (
    computed.look,
    adapter.look,
    inputs.look,
    training.look,
)
ORDER = {"problem": 0, "warning": 1, "ok": 2}


@dataclass(frozen=True)
class Checkup:
    """What was looked at, problems first."""

    ref: str
    kind: str
    lints: tuple[Lint, ...]
    not_checked: tuple[str, ...]
    seconds: float = 0.0

    @property
    def healthy(self) -> bool:
        """Whether there is no problem; a warning is none."""
        return not any(each.state == "problem" for each in self.lints)

    @property
    def words(self) -> str:
        """How many there are of each."""
        counts = Counter(each.state for each in self.lints)
        parts = [counted(counts[state], state) for state in ("problem", "warning") if counts[state]]
        found = " and ".join(parts) or "nothing odd"
        return f"{found}, {counted(counts['ok'], 'check')} fine"

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "ref": self.ref,
            "kind": self.kind,
            "healthy": self.healthy,
            "words": self.words,
            "lints": [vars(each) for each in self.lints],
            "not_checked": list(self.not_checked),
            "seconds": self.seconds,
        }


def doctor(thing: str, base: str | None = None) -> Checkup:
    """Look at a run, a recording or an adapter by itself.

    Loads no weights. Raises `InputError` for what is none of these.
    """
    started = time.perf_counter()
    side = open_evidence(thing, base)
    if side.kind == "config":
        raise InputError(
            f"{thing} is a configuration: nothing was computed with it yet",
            hint=f"`weft check {thing}` looks at it and its data",
        )
    if base is not None and side.kind != "adapter":
        raise InputError(
            f"the base {base} is not read: {thing} says on what it ran", hint="leave --base out"
        )
    lints = [lint for look in LOOKS for lint in look(side)]
    return Checkup(
        thing,
        side.kind,
        tuple(sorted(lints, key=lambda each: ORDER[each.state])),
        tuple(dict.fromkeys((*side.lacks, *side.notices))),
        time.perf_counter() - started,
    )
