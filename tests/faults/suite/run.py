"""Runs sides and keeps what they leave.

A side lies in `sides/KEY`: the script's files, links to what it is given, and below `out` its
recording. Equal sides are run once. A case is `cases/NUMBER/a` and `b`, links to two of those.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.suite.assets import Assets
from tests.faults.suite.case import Case, Side
from tests.faults.suite.zygote import Job, Zygote

SUBJECTS = Path(__file__).parent / "subjects"
WEFT_RUNS = ("woven", "spoken")
"""Subjects that are Weft itself, and leave their evidence without `weft record`."""
NUMBER = re.compile(r"-?\d+\.\d+|\bnan\b|-?\binf\b")


@dataclass(frozen=True)
class Ran:
    """What a side left: its directory, what it printed, and how long it took."""

    root: Path
    printed: str
    code: int
    seconds: float
    complaint: str
    subject: str

    @property
    def said(self) -> str:
        """What it computed, as text: what it printed, or the losses of a run of Weft."""
        steps = self.evidence / "steps.jsonl"
        if self.subject != "woven" or not steps.exists():
            return self.printed
        found = (json.loads(line) for line in steps.read_text().splitlines())
        return " ".join(f"{x.get('loss', x.get('loss_perturbed')):.6f}" for x in found)

    @property
    def evidence(self) -> Path:
        return self.root / "out"


def prepare(side: Side, sides: Path, assets: Assets) -> Path:
    """The directory of a side, as it is before it runs."""
    root = sides.resolve() / side.key(SUBJECTS)
    if root.exists():
        return root
    making = root.with_suffix(f".{os.getpid()}")
    making.mkdir(parents=True)
    for name, text in side.files(SUBJECTS).items():
        (making / name).write_text(text)
    for name, asset in side.links.items():
        (making / name).symlink_to(assets[asset])
    making.rename(root)
    return root


def run_side(side: Side, root: Path, zygote: Zygote, *, record: bool) -> Ran:
    """Run it, unless it was; a script under `weft record` if asked."""
    is_weft = side.subject in WEFT_RUNS
    name = "recorded" if record and not is_weft else "plain"
    done, out, err = (root / f"{name}.{suffix}" for suffix in ("done", "txt", "err"))
    if not done.exists():
        if name == "recorded" or is_weft:
            shutil.rmtree(root / "out", ignore_errors=True)
        what = "recorded" if name == "recorded" else "script"
        job = Job(what, str(root), str(out), str(err), env=dict(side.env))
        ended = zygote.run(job)
        done.write_text(f"{ended.code} {ended.seconds:.2f}\n")
    code, seconds = done.read_text().split()
    return Ran(root, out.read_text(), int(code), float(seconds), err.read_text(), side.subject)


def agrees(one: str, other: str, tolerance: float) -> bool:
    """Whether two outputs say the same, but for numbers that differ within a relative tolerance."""
    if NUMBER.sub("#", one) != NUMBER.sub("#", other):
        return False
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    return all(
        a == b or math.isclose(float(a), float(b), rel_tol=tolerance, abs_tol=tolerance / 10)
        for a, b in pairs
    )


def needed(cases: Iterable[Case]) -> set[str]:
    """The assets of these cases."""
    return {asset for case in cases for side in (case.a, case.b) for asset in side.links.values()}
