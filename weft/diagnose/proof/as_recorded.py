"""A run as it was recorded, and whether its configuration, taken again, gives that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from weft.core.files import Record
from weft.core.keys import Key
from weft.diagnose.proof.forward import Unspliced
from weft.diagnose.proof.rerun import Rerun, Taken
from weft.diagnose.proof.settings import Setup, sharing
from weft.diagnose.sides.evidence import Evidence
from weft.diagnose.words import counted
from weft.runs.manifest import Manifest
from weft.runs.provenance import code_state
from weft.runs.reader import RunReader, step_loss
from weft.training.job import Job
from weft.training.record import reward_print
from weft.training.resolve import from_record

NEAR = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
"""Relative error of a recorded number that rounding may have in a first step."""

SLACK = 10.0
"""So many times what a null moves a number, other threads or another processor may."""


@dataclass(frozen=True, eq=False)
class Side:
    """A run, as it was recorded and as it is configured."""

    name: str
    manifest: Manifest
    lines: tuple[Record, ...]
    ends: tuple[dict[str, Any], ...]  # rounds of boosting
    setup: Setup
    alone: bool  # no other adapters trained with it

    @classmethod
    def of(cls, name: str, side: Evidence) -> Side:
        """A side of a pair that is a run, or a member of one."""
        reader = RunReader(side.path)
        manifest = reader.manifest
        config = from_record(manifest.config, manifest.origins, str(reader.layout.manifest)).config
        seed, lr = (side.settings[key].value for key in ("seed", "optimiser.lr"))
        lane = next(each for each in config.lanes if (each.seed, each.lr) == (seed, lr))
        alone = len(config.lanes) == 1
        lines = [x for x in reader.steps() if x.get("member") == (None if alone else lane.name)]
        ends = [x for x in manifest.events if "of_step" in x and x.get("member") == lane.name]
        setup = Setup.of(config, lane, reader.layout.start).found(side.path)
        if setup.at("engine.name") != "local":
            raise Unspliced(f"{name}'s completions came from {setup.at('engine.name')}")
        return cls(name, manifest, tuple(lines), tuple(ends), setup, alone)

    def sharing(self, other: Side) -> Side:
        """The same with files of the other where theirs are the same, wherever they lie."""
        prints = {"base": "base", "data": "rows.train"}
        one, its = self.manifest.fingerprints, other.manifest.fingerprints
        same = {what: key in one and one[key] == its.get(key) for what, key in prints.items()}
        return replace(self, setup=sharing(other.setup, self.setup, same))


def control(rerun: Rerun, side: Side, taken: Taken, key: Key) -> tuple[bool, str]:
    """Whether a run is what its configuration says, and in words."""
    pairs = list(zip(side.lines, taken.lines, strict=False))
    exact = all(_unlike(x, y, None) is None for x, y in pairs)
    departs = None if exact else _departs(rerun, side, pairs, key)
    ends = {_end(each) for each in side.ends if each["step"] <= taken.state.step}
    other_ends = ends ^ {_end(each) for each in taken.ended}
    if departs is None and other_ends:
        departs = min(other_ends)[0], "rounds of boosting end otherwise"
    of = f"{len(pairs)} of {counted(len(side.lines), 'step')}"
    if departs is None:
        how = "bit for bit" if exact else "within rounding"
        return True, (
            f"{side.name}, taken again from its configuration, gives what it recorded of {of}, "
            f"{how}"
        )
    return False, (
        f"{side.name} is not what its configuration says: taken again, it first differs at "
        f"step {departs[0]} ({departs[1]}): {_blame(side.manifest)}; nothing is proven from it"
    )


def _end(event: Mapping[str, Any]) -> tuple[int, int, str]:
    return event["step"], event["of_step"], event["kind"]


def _departs(
    rerun: Rerun, side: Side, pairs: Sequence[tuple[Record, Record]], key: Key
) -> tuple[int, str] | None:
    """The first step that rounding does not explain, and in what."""
    nudged = rerun.take(side.setup, len(pairs), nudge=key.fold("null")).lines
    slack = NEAR.get(side.setup.config.dtype, 1e-3)
    for n, (recorded, made) in enumerate(pairs):
        if n < len(nudged):
            moved = (_relative(made, nudged[n], name) for name in NUMBERS)
            slack = max(slack, SLACK * max(moved))
        found = _unlike(recorded, made, slack)
        if found is not None:
            return recorded["step"], found
    return None


NUMBERS: dict[str, Callable[[Record], Any]] = {
    "loss": step_loss,
    "learning rate": lambda line: line["lr"],
    "norm of its direction": lambda line: line["grad_norm"],
    "norm of its update": lambda line: line["update_norm"],
}

DIGESTS = {"batch": "other rows", "labels": "other labels", "supervised_tokens": "other labels"}


def _unlike(recorded: Record, made: Record, slack: float | None) -> str | None:
    """In what a step is not as recorded; without slack to the last bit."""
    if recorded.get("batch"):
        for key, words in DIGESTS.items():
            if recorded.get(key) != made.get(key):
                return words
    for name in NUMBERS:
        apart = _relative(recorded, made, name)
        if apart > (slack or 0.0):
            x, y = (NUMBERS[name](each) for each in (recorded, made))
            return f"{name} {y:.6g}, recorded {x:.6g}"
    if slack is None and recorded.get("adapter") != made.get("adapter"):
        return "another adapter"
    return None


def _relative(x: Record, y: Record, name: str) -> float:
    one, other = (NUMBERS[name](each) for each in (x, y))
    if one is None or other is None or one == other or one != one or other != other:
        return 0.0 if one == other or (one != one and other != other) else float("inf")
    return abs(one - other) / max(abs(one), abs(other))


def _blame(manifest: Manifest) -> str:
    if manifest.fingerprints.get("code") != code_state().sha256:
        return "another state of the code of Weft made it, or something was changed in code"
    return "something was changed in code"


def refuse_changed(side: Side, job: Job) -> None:
    """What must be as it was when the run began."""
    prints = side.manifest.fingerprints
    split = job.splits["train"]
    now = {
        "base": job.base.fingerprint(),
        "tokens.train": split.fingerprint,
        **({"reward": reward_print(job)["reward"]} if "reward" in prints else {}),
    }
    names = {"base": "base", "tokens.train": "training data", "reward": "reward"}
    gone = [names[key] for key, digest in now.items() if prints.get(key) not in (None, digest)]
    if gone:
        raise Unspliced(
            f"{side.name}'s {' and '.join(gone)} {'is' if len(gone) == 1 else 'are'} not what "
            "the run had: digests differ"
        )
