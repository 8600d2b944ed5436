"""The case studies of the documentation: what `weft diff` and `weft doctor` say of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from weft.diagnose.diff import diff
from weft.diagnose.doctor import doctor

pytestmark = pytest.mark.slow


def labels(found):
    return [cause.finding.label for cause in found.causes]


def test_case_a_lost_context_comes_first_and_then_the_others_in_order_of_effect(adapter, recorded):
    found = diff(
        recorded("case-a-lost-context/correct.py"), recorded("case-a-lost-context/broken.py")
    )
    assert found.verdict == "different"
    assert labels(found) == ["cache", "data", "sampler", "stop", "seed"]
    assert "context is lost" in found.words
    assert found.first.label == "data"  # the prompt comes before the second token
    assert found.causes[0].finding.where == "broken.py:24"
    assert "tables.jsonl:1" in found.causes[1].finding.words
    assert found.passages[0].token is not None


def test_case_a_doctor_finds_it_in_the_broken_script_alone(adapter, recorded):
    broken = doctor(recorded("case-a-lost-context/broken.py"))
    assert [each.name for each in broken.lints if each.state == "problem"] == ["context"]
    assert "seed" in {each.name for each in broken.lints if each.state == "warning"}
    assert doctor(recorded("case-a-lost-context/correct.py")).healthy


def test_case_b_the_start_is_20_times_weaker(recorded):
    found = diff(recorded("case-b-weak-start/strong.py"), recorded("case-b-weak-start/weak.py"))
    assert labels(found)[0] == "init"
    assert found.first.label == "init"
    first = found.causes[0].finding
    assert max(first.value, 1 / first.value) == pytest.approx(20, rel=1e-3)
    assert "20" in first.words


def test_case_b_runs_of_weft_that_start_from_a_weaker_adapter(weft, root):
    """The factors A of the start are 20 times smaller; population and steps are cut short."""
    subprocess.run([sys.executable, "examples/case-b-weak-start/weaken.py"], cwd=root, check=True)
    short = (
        "steps=1",
        "method.population=2",
        "method.samples_per_generation=2",
        "objective.decoding.max_tokens=4",
        "eval.rows=2",
        "eval.every=1",
    )
    weft("train", "countdown", *short, "--run-dir", "runs/strong")
    weft("train", "countdown", *short, "start=runs/weak-start", "--run-dir", "runs/weak")
    found = diff(str(root / "runs/strong"), str(root / "runs/weak"))
    assert labels(found)[0] == "init"
    first = found.causes[0].finding
    assert max(first.value, 1 / first.value) == pytest.approx(20, rel=1e-3)


def test_case_c_boosted_and_plain_agree_where_they_should(recorded):
    found = diff(recorded("case-c-boosting/plain.py"), recorded("case-c-boosting/boosted.py"))
    assert found.verdict == "same"


def test_case_c_alpha_is_lost(recorded):
    found = diff(recorded("case-c-boosting/plain.py"), recorded("case-c-boosting/alpha.py"))
    assert labels(found)[0] == "scale"
    scale = found.causes[0].finding
    assert max(scale.value, 1 / scale.value) == pytest.approx(4, rel=1e-3)  # alpha / rank


def test_case_c_merges_come_with_epochs(recorded):
    found = diff(recorded("case-c-boosting/plain.py"), recorded("case-c-boosting/epochs.py"))
    assert labels(found)[0] == "schedule"
    assert found.causes[0].finding.step == 4
    assert "after step 4, 8" in found.words


def test_case_c_the_rank_is_forced_to_1(recorded):
    found = diff(recorded("case-c-boosting/plain.py"), recorded("case-c-boosting/rank.py"))
    assert labels(found)[0] == "rank"
    rank = found.causes[0].finding
    assert (rank.other, rank.value) == (4.0, 1.0)


def test_case_d_nothing_is_trainable_in_evaluation_and_that_is_normal(adapter, recorded):
    found = doctor(recorded("case-d-evaluation/evaluate.py"))
    lints = {each.name: each for each in found.lints}
    assert found.healthy
    assert lints["trainable"].words.startswith("0 trainable parameters: normal")
    assert lints["attached"].words.startswith("attached at 12 modules; |dW| up to")


def test_case_d_the_first_module_that_is_not_finite_is_named(recorded):
    script = "case-d-evaluation/kl.py"
    found = diff(recorded(script, "float32"), recorded(script, "float16"))
    assert labels(found)[0] == "overflow"
    assert found.first.place.startswith("model.layers.3.mlp.")
    problem = doctor(recorded(script, "float16")).lints[0]
    assert (problem.name, problem.state) == ("finite", "problem")
    assert problem.place == found.first.place


def test_case_e_two_aligned_scripts_are_the_same_and_it_says_what_was_checked(recorded):
    found = diff(recorded("case-e-aligned/one.py"), recorded("case-e-aligned/two.py"))
    assert found.verdict == "same"
    assert found.causes == ()
    checked = "\n".join(found.ruled_out)
    for what in ("base weights equal", "16 of 16 training rows", "scales equal", "1 of 1 texts"):
        assert what in checked
