"""`weft diff`: what is on the screen, in JSON, and in the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from weft.cli.diff import coverage
from weft.cli.sections import COLUMNS, LINES, Entry, Section, folded, shown
from weft.diagnose.finding import Cause, Diagnosis, Finding, Outcome

ROOT = Path(__file__).parents[3]
SCALE = Finding(
    5,
    "factor",
    "scale",
    "all 12 adapted modules",
    "B's update is 8 times A's",
    value=8.0,
    floor=0.001,
    where="train_b.py:88",
    fix="pass scale=alpha / r",
)
DIFFERENT = Diagnosis(
    "a",
    "b",
    "different",
    SCALE.words,
    (Cause(SCALE, "proven", 0.999, 0.98, ("B with A's scale: mean KL 1.84 -> 0.0007 nats",)),),
    SCALE,
    (Outcome("kl", 1.84, 0.0011, "nats", "mean KL 1.84 nats (floor 0.0011)"),),
    harmless=("keys are in another order",),
    ruled_out=("token ids are equal: 16 of 16 prompts",),
    not_checked=("training: neither side trained",),
    coverage={"A": {"kind": "run", "steps": 1200, "checks": ["ulp", "ulp", "split"]}},
    seconds=0.42,
)
SAME = replace(
    DIFFERENT, verdict="same", words="A and B are the same within noise", causes=(), first=None
)


@pytest.fixture
def answer(monkeypatch):
    """Make `weft diff` find something, and keep what it was asked."""
    asked = []

    def give(diagnosis):
        def diff(a, b, **options):
            asked.append((a, b, options))
            return diagnosis

        monkeypatch.setattr("weft.diagnose.diff.diff", diff)
        return asked

    return give


def test_the_screen_names_cause_value_floor_multiple_and_confidence(cli, answer):
    answer(DIFFERENT)
    said = cli("diff", "a", "b")
    assert said.code == 0
    assert "VERDICT           different. Root cause (proven): B's update is 8 times A's" in said.out
    assert "rung 5" in said.out and "all 12 adapted modules" in said.out
    assert "8 (floor 0.001, 8,000x)" in said.out
    assert "closes 99.9 % of the gap; opens 98 %" in said.out
    assert "EFFECT            mean KL 1.84 nats (floor 0.0011)" in said.out


def test_the_screen_says_what_passed_what_was_not_checked_and_how_to_mend_it(cli, answer):
    answer(DIFFERENT)
    lines = cli("diff", "a", "b").out.splitlines()
    sections = {line[:18].strip(): line[18:] for line in lines if line[:18].strip()}
    assert sections["RULED OUT"] == "token ids are equal: 16 of 16 prompts"
    assert sections["NOT CHECKED"] == "training: neither side trained"
    assert sections["HARMLESS"] == "keys are in another order"
    assert sections["FIX"] == "pass scale=alpha / r; train_b.py:88"
    assert sections["COVERAGE"] == "A: run, 1,200 steps, self-checks ulp, split"


def test_one_of_a_kind_is_counted_in_the_singular():
    held = {"kind": "run", "prompts": 1, "passes": 1, "generations": 1, "steps": 2}
    found = Diagnosis("a", "b", "same", "", coverage={"A": held})
    assert coverage(found)[0] == "A: run, 1 prompt, 1 pass, 1 generation, 2 steps"


def test_configurations_have_computed_nothing_that_could_be_exchanged(cli):
    said = cli("diff", "instruct", "tables")
    assert "--prove" not in said.err
    found = json.loads(cli("diff", "instruct", "tables", "--prove", "--json").out)
    assert found["verdict"] == "different"
    assert {cause["confidence"] for cause in found["causes"]} == {"located"}
    assert not any("replicas" in words for words in found["harmless"])
    assert any(
        words.startswith("no cause was exchanged: configurations") for words in found["not_checked"]
    )


def test_the_command_can_be_pasted(cli, answer):
    answer(DIFFERENT)
    said = cli("diff", "a b", "c", "--base", "weft/tiny")
    assert said.out.splitlines()[-1].endswith("weft diff 'a b' c --base weft/tiny")
    assert "next: weft diff 'a b' c --prove --base weft/tiny" in said.err
    said = cli("diff", "a b", "c", "--prove", "--seed", "3")
    assert said.out.splitlines()[-1].endswith("weft diff 'a b' c --prove --seed 3")


def test_options_reach_the_diagnosis(cli, answer):
    asked = answer(DIFFERENT)
    cli("diff", "a", "b", "--prove", "--seed", "5", "--base", "weft/tiny")
    (_, _, options) = asked[0]
    assert options["prove"] and options["seed"] == 5 and options["base"] == "weft/tiny"
    assert callable(options["watch"])


def test_what_only_a_proof_reads_is_refused_without_one(cli):
    for option, value in (("--base", "weft/tiny"), ("--seed", "3")):
        said = cli("diff", "instruct", "tables", option, value)
        assert said.code == 2 and option in said.err and "--prove" in said.err


def test_what_configurations_cannot_have_is_said_once(cli):
    found = json.loads(cli("diff", "instruct", "tables", "--json").out)
    (lacks,) = found["not_checked"]
    assert lacks.startswith("configurations have computed nothing")


@pytest.mark.parametrize(("diagnosis", "code"), [(SAME, 0), (DIFFERENT, 1)])
def test_assert_same_is_an_exit_code(cli, answer, diagnosis, code):
    answer(diagnosis)
    assert cli("diff", "a", "b", "--assert-same").code == code


def test_unsure_is_not_same(cli, answer):
    answer(replace(SAME, verdict="unsure"))
    assert cli("diff", "a", "b", "--assert-same").code == 1
    assert cli("diff", "a", "b").code == 0


def test_same_says_so_first(cli, answer):
    answer(SAME)
    said = cli("diff", "a", "b")
    assert said.out.startswith("VERDICT           same. A and B are the same within noise\n")
    assert "next:" not in said.err


def test_json_holds_everything(cli, answer):
    answer(DIFFERENT)
    found = json.loads(cli("diff", "a", "b", "--json").out)
    assert found["verdict"] == "different"
    (cause,) = found["causes"]
    assert (cause["label"], cause["rung"], cause["confidence"]) == ("scale", 5, "proven")
    assert (cause["value"], cause["floor"], cause["multiple"]) == (8.0, 0.001, 8000.0)
    assert (cause["gap_closed"], cause["where"]) == (0.999, "train_b.py:88")
    assert found["ruled_out"] and found["not_checked"] and found["coverage"]


def test_html_is_written_and_said(cli, answer, tmp_path):
    answer(DIFFERENT)
    said = cli("diff", "a", "b", "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert f"written: {tmp_path / 'page.html'}" in said.err


def test_a_place_where_no_page_can_be_is_refused_before_anything_else(cli, answer, tmp_path):
    asked = answer(DIFFERENT)
    said = cli("diff", "a", "b", "--html", tmp_path)
    assert said.code == 2 and "--html" in said.err
    assert asked == []


def test_a_diagnosis_fits_on_one_screen_whatever_was_found(cli, answer):
    causes = tuple(
        Cause(replace(SCALE, words=f"{n}: {'long words ' * 12}", fix="mend it " * 9), "located")
        for n in range(9)
    )
    many = tuple(f"thing {n}: {'many words ' * 14}" for n in range(50))
    answer(replace(DIFFERENT, causes=causes, ruled_out=many, not_checked=many, harmless=many))
    out = cli("diff", "a", "b").out
    wrapped = [textwrap.wrap(line[18:], COLUMNS - 18) or [""] for line in out.splitlines()]
    assert sum(map(len, wrapped)) <= LINES + 1
    assert "more)" in out and "--json has all" in out


def test_what_a_side_says_does_not_steer_the_terminal(cli, answer):
    answer(replace(SAME, not_checked=("\x1b[2J\nA: \u202eevil",)))
    out = cli("diff", "a", "b").out
    assert "\\x1b[2J\\nA: \\u202eevil" in out
    assert "\x1b" not in out


def test_shown_leaves_plain_text_alone():
    assert shown("zażółć gęślą 漢字 -> 'x'") == "zażółć gęślą 漢字 -> 'x'"


def test_what_is_worth_more_is_folded_last():
    lines = tuple(Entry.of(str(n)) for n in range(30))
    assert folded([Section("a", lines, worth=1), Section("b", lines)], 80) == [30, 10]


def test_two_finished_runs_need_no_torch_and_less_than_two_seconds(run):
    code = (
        "import sys, time\n"
        "from weft.cli.main import main\n"
        f"assert main(['diff', {str(run)!r}, {str(run)!r}, '--assert-same']) == 0\n"
        "heavy = {'torch', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(time.process_time(), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("VERDICT           same.")
    assert float(done.stderr) < 2  # of this process: others do not count


def test_what_cannot_be_compared_is_an_error_with_a_hint(cli, run):
    said = cli("diff", run, "instruct")
    assert said.code == 2
    assert "a run and" in said.err and "hint" in said.err
