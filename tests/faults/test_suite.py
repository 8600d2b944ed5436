"""A dozen development cases of the fault suite, so that a change that breaks diagnosis is seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults.suite.bench import Bench
from tests.faults.suite.case import Case
from tests.faults.suite.registry import CASES, numbers
from tests.faults.suite.run import SUBJECTS, WEFT_RUNS
from tests.faults.suite.score import judge
from tests.faults.suite.table import wilson

DOZEN = (
    "F01 score ratio 8, in the file",
    "F01 woven ratio 8, in code",
    "F05 tune 20 times",
    "F06 tune 1 for 8",
    "F07 answer all of it",
    "F09 score k and v, everywhere",
    "F19 answer every prompt",
    "F24 answer from token 2 on",
    "F27 complete temperature 1.2 for 0.7",
    "F34b layers epochs, by hand",
    "benign score eager for sdpa",
    "cancel answer every position three later",
)
BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("where", ["scripts", "runs of Weft"])
def test_every_type_of_fault_is_there_at_two_severities(where: str) -> None:
    severities: dict[str, set[str]] = {}
    for case in CASES:
        if case.kind == "single" and (case.subject in WEFT_RUNS) == (where == "runs of Weft"):
            severities.setdefault(case.faults[0], set()).add(case.severity)
    types = {f"F{n:02}" for n in range(1, 34)} | {"F34a", "F34b", "F34c"}
    assert severities.keys() == types
    assert [fault for fault, found in severities.items() if len(found) < 2] == []


def test_there_are_enough_pairs_that_are_not_one_fault() -> None:
    kinds = [case.kind for case in CASES]
    assert kinds.count("benign") >= 15
    assert kinds.count("double") >= 10
    assert kinds.count("cancel") >= 6


def test_a_number_says_nothing_of_its_case_and_stays_its_own() -> None:
    of = numbers()
    assert sorted(of.values()) == list(range(1, len(CASES) + 1))
    kinds = [case.kind for case in sorted(CASES, key=lambda case: of[case.name])]
    assert len({tuple(kinds[i : i + 8]) for i in range(0, 80, 8)}) > 5


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_sides_of_a_case_differ_in_what_it_says_and_name_no_fault(case: Case) -> None:
    a, b = case.a.files(SUBJECTS), case.b.files(SUBJECTS)
    assert a.keys() == b.keys()
    assert case.a.key(SUBJECTS) != case.b.key(SUBJECTS)
    for text in (*a.values(), *b.values()):
        assert not re.search(r"\bF[0-3]\d|\bfault|inject", text)


def answer(verdict: str, *labels: str, **facts: object) -> dict[str, object]:
    causes = [{"label": name, "rung": 5, "place": "", "step": None} | facts for name in labels]
    return {"verdict": verdict, "causes": causes, "first_divergence": None}


def test_an_answer_is_judged_by_its_causes() -> None:
    case = BY_NAME["F07 answer all of it"]
    right = judge(case, 1, answer("different", "attach", place="all 42 adapted modules"))
    assert (right.detected, right.top1, right.rung, right.place) == (1, True, True, True)
    late = judge(case, 1, answer("different", "seed", "attach"))
    assert (late.top1, late.top3) == (False, True)
    wrong = judge(case, 1, answer("unsure", "seed", confidence="proven"))
    assert (wrong.detected, wrong.top1, wrong.proven) == (0.5, False, (("seed", False, None),))
    assert judge(case, 1, None).detected == 0


def test_a_scale_of_0_is_an_adapter_that_is_not_attached_and_no_other_scale_is() -> None:
    case = BY_NAME["F07 answer all of it"]
    assert judge(case, 1, answer("different", "scale", value=0.0)).top1
    assert not judge(case, 1, answer("different", "scale", value=0.5)).top1


def test_of_pairs_that_are_the_same_any_other_answer_is_an_alarm() -> None:
    case = BY_NAME["benign score eager for sdpa"]
    alarms = [judge(case, 1, answer(each)).detected for each in ("same", "unsure", "different")]
    assert alarms == [0, 0.5, 1]
    assert judge(case, 1, None).detected == 1


def test_both_faults_of_a_double_one_must_be_among_the_causes() -> None:
    case = BY_NAME["F07+F24 answer"]
    assert judge(case, 1, answer("different", "cache", "attach")).found == 1
    assert judge(case, 1, answer("different", "cache")).found == 0.5


def test_wilson_intervals_are_those_of_scipy() -> None:
    from scipy.stats import binomtest

    for hits, count in ((0, 9), (7, 9), (9, 9), (90, 100)):
        known = binomtest(hits, count).proportion_ci(method="wilson")
        assert wilson(hits, count) == pytest.approx((known.low, known.high), abs=1e-6)


@pytest.mark.slow
def test_a_dozen_cases_are_sound_and_most_causes_come_first(tmp_path: Path) -> None:
    cases = [BY_NAME[name] for name in DOZEN]
    bench = Bench(tmp_path, prove=False)
    results = bench.run(cases, lambda case, result, number: None)
    assert [result.complaint for result in results if not result.sound] == []
    judged = {result.judged["weft diff"].case: result.judged["weft diff"] for result in results}
    assert [name for name, each in judged.items() if each.problem] == []
    faulty = [each for each in judged.values() if each.kind == "single"]
    assert [each.case for each in faulty if each.detected < 1] == []
    assert sum(bool(each.top1) for each in faulty) >= len(faulty) - 1
    assert [each.case for each in judged.values() if each not in faulty and each.detected] == []
