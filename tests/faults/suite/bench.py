"""Runs cases: both sides, `weft diff` on them, the baselines, and the judgement."""

from __future__ import annotations

import json
import math
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.suite.assets import Assets
from tests.faults.suite.baselines import BASELINES, baseline_answers
from tests.faults.suite.case import Case, Side
from tests.faults.suite.registry import numbers
from tests.faults.suite.run import SUBJECTS, Ran, agrees, needed, prepare, run_side
from tests.faults.suite.score import Judged, judge
from tests.faults.suite.zygote import Done, Job, Zygote

SYSTEMS = ("weft diff", *BASELINES)


@dataclass(frozen=True)
class Result:
    """What every system says of one case, and whether the case is what it should be."""

    judged: dict[str, Judged]
    sound: bool
    """The sides' outputs agree or differ as the kind of the case says."""
    complaint: str = ""

    @classmethod
    def of(cls, read: dict[str, Any]) -> Result:
        """As `asdict` wrote it."""
        judged = {
            name: Judged(
                **{
                    **each,
                    "faults": tuple(each["faults"]),
                    "said": tuple(each["said"]),
                    "proven": tuple(map(tuple, each["proven"])),
                }
            )
            for name, each in read["judged"].items()
        }
        return cls(judged, read["sound"], read["complaint"])


@dataclass
class Bench:
    """A directory to work in, and processes to do it with."""

    root: Path
    jobs: int = 2
    prove: bool = True
    resume: bool = False
    minutes: float = math.inf
    """After which no further case is begun."""
    startup: tuple[float, float] = (0.0, 0.0)
    """Processor seconds of loading, which forked processes do not spend, without and with --prove:
    added to what an answer takes."""
    _locks: dict[str, threading.Lock] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        self.began = time.monotonic()
        self.assets = Assets(self.root / "assets")
        self.pool: queue.Queue[Zygote] = queue.Queue()

    def run(self, cases: Sequence[Case], tell: Callable[[Case, Result, int], None]) -> list[Result]:
        """Cases in the order of their numbers, `jobs` at a time; `tell` hears of each as it ends.

        Those that were not begun in time are left out.
        """
        cases = sorted(cases, key=lambda case: numbers()[case.name])
        self.assets.make(needed(cases))
        zygotes = [Zygote() for _ in range(self.jobs)]
        for each in zygotes:
            self.pool.put(each)
        results: dict[str, Result] = {}
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                waiting = {pool.submit(self.case, case): case for case in cases}
                for number, done in enumerate(as_completed(waiting), 1):
                    result = done.result()
                    if result is not None:
                        results[waiting[done].name] = result
                        tell(waiting[done], result, number)
        finally:
            for each in zygotes:
                each.close()
        return [results[case.name] for case in cases if case.name in results]

    def case(self, case: Case) -> Result | None:
        """One case, from its sides to its judgement, or as it was judged before."""
        number = numbers()[case.name]
        plain = self.root / "results" / f"{number:03}.json"
        kept = plain.with_stem(f"{number:03}p") if self.prove else plain
        if self.resume and kept.exists():
            return Result.of(json.loads(kept.read_text()))
        if time.monotonic() - self.began > 60 * self.minutes:
            known = self.resume and plain.exists()
            return Result.of(json.loads(plain.read_text())) if known else None
        result = self._judged(case, number)
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(asdict(result)))
        return result

    def _judged(self, case: Case, number: int) -> Result:
        a, b = self.side(case.a), self.side(case.b)
        place = self.root / "cases" / f"{number:03}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for letter, ran in (("a", a), ("b", b)):
            (place / letter).symlink_to(ran.evidence)
        problem = unsound(case, a, b)
        told, done = self.diff(place)
        proof, proof_done = self.diff(place, "--prove") if self.prove else (None, None)
        judged = judge(
            case,
            number,
            proof if self.prove else told,
            seconds=done.processor + self.startup[0],
            prove_seconds=None if proof_done is None else proof_done.processor + self.startup[1],
            problem=_last_line(place / ("prove.err" if self.prove else "diff.err"))
            if (proof if self.prove else told) is None
            else "",
        )
        answers = {"weft diff": judged}
        for name, answer in self._baselines(place).items():
            answers[name] = judge(case, number, answer)
        return Result(answers, not problem, problem)

    def side(self, side: Side) -> Ran:
        """Run once, whoever asks."""
        with self._guard:
            lock = self._locks.setdefault(side.key(SUBJECTS), threading.Lock())
        with lock:
            root = prepare(side, self.root / "sides", self.assets)
            with self._zygote() as zygote:
                return run_side(side, root, zygote, record=True)

    def diff(self, place: Path, *options: str) -> tuple[dict[str, Any] | None, Done]:
        """What `weft diff a b --json` says; None where it says nothing."""
        name = "prove" if options else "diff"
        out, err = place / f"{name}.json", place / f"{name}.err"
        job = Job("weft", str(place), str(out), str(err), ["diff", "a", "b", "--json", *options])
        with self._zygote() as zygote:
            done = zygote.run(job)
        try:
            return json.loads(out.read_text()), done
        except ValueError:
            return None, done

    def _baselines(self, place: Path) -> dict[str, dict[str, Any] | None]:
        try:
            return dict(baseline_answers(place / "a", place / "b"))
        except Exception:
            return dict.fromkeys(BASELINES)

    @contextmanager
    def _zygote(self) -> Iterator[Zygote]:
        zygote = self.pool.get()
        try:
            yield zygote
        finally:
            self.pool.put(zygote)


def unsound(case: Case, a: Ran, b: Ran) -> str:
    """What is wrong with the case itself; nothing, mostly."""
    for letter, ran, fails in (("a", a, False), ("b", b, case.fails)):
        if fails and not ran.code:
            return f"side {letter} ({ran.root}) ended without an error"
        if ran.code and not fails:
            tail = ran.complaint.strip().splitlines()[-1:]
            return f"side {letter} ({ran.root}) ended with {ran.code}: {''.join(tail)}"
    if agrees(a.said, b.said, case.tolerance) != case.is_same:
        what = "differ" if case.is_same else "are the same"
        return f"the outputs of {a.root} and {b.root} {what}"
    return ""


def _last_line(path: Path) -> str:
    lines = path.read_text().strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "no answer"
