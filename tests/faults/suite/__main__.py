"""`python -m tests.faults.suite`: the fault suite, all of it or a part."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.faults.suite.bench import SYSTEMS, Bench, Result
from tests.faults.suite.case import Case
from tests.faults.suite.registry import CASES, chosen, numbers
from tests.faults.suite.score import Judged
from tests.faults.suite.table import aligned, by_fault, by_type, markdown, rows, values

REPOSITORY = Path(__file__).parents[3]
PAGE = REPOSITORY / "docs" / "diagnosis.md"
RESULTS = REPOSITORY / "tests" / "faults" / "results"
BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.suite", description=__doc__)
    listed = {"type": lambda text: text.split(","), "default": (), "metavar": "A,B"}
    parser.add_argument("--types", help="F01,F34 or parts of them", **listed)
    parser.add_argument("--kind", help="single, benign, double, cancel", **listed)
    parser.add_argument("--subject", help="answer, complete, batch, score, ...", **listed)
    parser.add_argument("--name", help="parts of names, or numbers", **listed)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--development", action="store_true", help="leave out what is held out")
    which.add_argument("--held-out", action="store_true", help="only what is held out")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, and keep it")
    parser.add_argument("--no-prove", action="store_true", help="`weft diff` without --prove")
    parser.add_argument("--jobs", type=int, default=2, help="at a time (default: 2)")
    parser.add_argument("--resume", action="store_true", help="go on with --keep")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no case after so many"
    )
    parser.add_argument("--write", action="store_true", help="write the page and a dated file")
    parser.add_argument("--require", action="store_true", help="fail where a case is not sound")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    given = options(arguments)
    cases = chosen(
        types=given.types,
        kinds=given.kind,
        subjects=given.subject,
        names=[name for name in given.name if not name.isdigit()],
        development=given.development,
        held_out=given.held_out,
    )
    wanted = {int(name) for name in given.name if name.isdigit()}
    of = numbers()
    cases = [case for case in cases if not wanted or of[case.name] in wanted]
    if not cases:
        print("no case fits", file=sys.stderr)
        return 2
    if given.list:
        for case in cases:
            print(
                f"{of[case.name]:03}  {case.kind:7} {case.name}"
                + (" (held out)" if case.held_out else "")
            )
        return 0
    with contextlib.ExitStack() as stack:
        root = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(root, given.jobs, not given.no_prove, given.resume, given.minutes, startup())
        progress = Progress(len(cases))
        results = bench.run(cases, progress.tell)
    report(cases, results, progress.seconds)
    if given.write:
        write(results, progress.seconds)
    return int(given.require and not all(result.sound for result in results))


def startup() -> tuple[float, float]:
    """Processor seconds of loading what forked processes have loaded, without and with --prove."""
    return _timed("import weft.cli.main, weft.diagnose.diff"), _timed(
        "import weft.cli.main, peft, weft.diagnose.diff; "
        "from transformers.models.llama import modeling_llama"
    )


def _timed(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=REPOSITORY)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class Progress:
    """A line a case, with the time to go."""

    def __init__(self, total: int) -> None:
        self.total, self.started = total, time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def tell(self, case: Case, result: Result, number: int) -> None:
        judged = result.judged["weft diff"]
        togo = self.seconds / number * (self.total - number)
        good = judged.detected == 0 if case.is_same else judged.found == 1
        marks = [name for name in ("rung", "place", "step") if getattr(judged, name) is False]
        first = "" if case.is_same or not good or judged.top1 else ", not first"
        wrong = [label for label, right, _ in judged.proven if not right]
        print(
            f"{number:3}/{self.total} {togo / 60:4.1f} min to go  {judged.number:03} "
            f"{'ok  ' if good else 'MISS'} {case.name}: {judged.verdict} "
            f"{' '.join(judged.said[:4]) or '-'}{first}"
            + (f"; wrong {', '.join(marks)}" if marks else "")
            + (f"; wrongly proven {', '.join(wrong)}" if wrong else "")
            + (f"; {judged.problem}" if judged.problem else "")
            + ("" if result.sound else f"; NOT SOUND: {result.complaint}")
            + f"  {judged.seconds:.1f} s"
            + (f" {judged.prove_seconds:.1f} s" if judged.prove_seconds is not None else ""),
            flush=True,
        )


def parted(results: Sequence[Result]) -> dict[str, dict[str, list[Judged]]]:
    """Answers of each system, development and held out apart."""
    parts: dict[str, dict[str, list[Judged]]] = {}
    for name, held_out in (("development", False), ("held out", True)):
        found = {
            system: [r.judged[system] for r in results if r.judged[system].held_out is held_out]
            for system in SYSTEMS
        }
        if found["weft diff"]:
            parts[name] = found
    return parts


def report(cases: Sequence[Case], results: Sequence[Result], seconds: float) -> None:
    print()
    print(aligned(*rows(parted(results), SYSTEMS)))
    judged = [result.judged["weft diff"] for result in results]
    print()
    print(aligned(*by_fault(judged)))
    found = values(judged, "cause first, single faults")
    if found:
        low, high = by_type(found)
        print(f"\ncause first, drawn by type: {low:.2f} to {high:.2f}")
    bad = [r.complaint for r in results if not r.sound]
    print(
        f"{len(results)} of {len(cases)} cases in {seconds / 60:.1f} minutes; {len(bad)} not sound"
    )
    for line in bad:
        print(f"  {line}")


def write(results: Sequence[Result], seconds: float) -> None:
    """The dated file, and the page between its markers."""
    day = datetime.date.today().isoformat()
    RESULTS.mkdir(exist_ok=True)
    record = {
        "date": day,
        "cases": len(results),
        "of": len(CASES),
        "seconds": round(seconds, 1),
        "answers": [
            {system: asdict(judged) for system, judged in result.judged.items()}
            for result in results
        ],
    }
    (RESULTS / f"{day}.json").write_text(json.dumps(record, indent=1) + "\n")
    judged = [result.judged["weft diff"] for result in results]
    low, high = by_type(values(judged, "cause first, single faults"))
    text = "\n\n".join(
        [
            f"{_count(results)} on {day}, made by `make faults`. In brackets: Wilson's interval "
            "at 95 %, and the number of cases. Cases of one type are alike: drawing types instead "
            f"of cases, the share of single faults whose cause comes first is {low:.2f} to "
            f'{high:.2f}. "Held out" are the types and the model family that nobody saw who '
            'wrote a rule. An answer of "unsure" counts half. Baselines read the same evidence: '
            "declared settings that differ; the first hidden state that differs; the first loss "
            "that differs.",
            markdown(*rows(parted(results), SYSTEMS)),
            "By type of fault (`said instead`: the first cause, or the verdict, where another was "
            "right):",
            markdown(*by_fault(judged)),
        ]
    )
    page = PAGE.read_text() if PAGE.exists() else f"{BEGIN}\n{END}\n"
    block = f"{BEGIN}\n{text}\n{END}"
    PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: block, page, flags=re.S))


def _count(results: Sequence[Result]) -> str:
    done = len(results)
    proven = sum(r.judged["weft diff"].prove_seconds is not None for r in results)
    text = f"{done} cases" if done == len(CASES) else f"{done} of {len(CASES)} cases"
    return text if proven == done else f"{text}, {proven} of them with --prove,"


if __name__ == "__main__":
    sys.exit(main())
