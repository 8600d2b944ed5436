"""What an experiment came to is what its files say, and its intervals are those of the textbook."""

from __future__ import annotations

import csv
import json
import math

import pytest
from scipy import stats

from weft.analysis.experiment import Score, Spread, line, paired, read_experiment
from weft.analysis.experiment_tables import write_findings
from weft.core.errors import InputError
from weft.runs.layout import ExperimentLayout

A, B = [0.70, 0.74, 0.72, 0.75, 0.71], [0.73, 0.74, 0.76, 0.74, 0.78]


def test_curves_hold_every_step_and_every_evaluation(made_experiment):
    (arm,) = read_experiment(made_experiment({"mezo": A[:2]})).arms
    assert [run.seed for run in arm.seeds] == [0, 1]
    points = arm.seeds[1].points
    assert [point.step for point in points] == list(range(11))
    assert [point.forwards for point in points] == list(range(0, 21, 2))
    assert {point.perturbed for point in points[1:]} == {3.0}
    assert {point.train for point in points} == {None}  # nobody has measured it at theta
    assert [(p.step, p.valid) for p in arm.seeds[1].valid] == [
        (0, pytest.approx(1.01)),
        (5, pytest.approx(0.91)),
        (10, pytest.approx(0.81)),
    ]
    assert {point.accuracy for point in arm.seeds[1].valid} == {0.5}
    assert (arm.step, arm.forwards, arm.seeds[0].kept_step) == (10, 20, 5)
    assert arm.seconds_per_step == pytest.approx(0.55)


def test_a_mean_has_the_interval_of_a_t_test(made_experiment):
    (arm,) = read_experiment(made_experiment({"mezo": A})).arms
    found, wanted = arm.metric, stats.ttest_1samp(A, 0).confidence_interval(0.95)
    assert (found.mean.low, found.mean.high) == pytest.approx((wanted.low, wanted.high))
    assert found.mean.estimate == pytest.approx(sum(A) / 5)
    assert (found.sd, found.seeds) == (pytest.approx(stats.tstd(A)), 5)


def test_differences_are_paired_by_seed(made_experiment):
    found = read_experiment(made_experiment({"mezo": A, "boosted": B}))
    reference, boosted = found.arms
    difference = found.difference(boosted)
    wanted = stats.ttest_rel(B, A).confidence_interval(0.95)
    assert (difference.mean.low, difference.mean.high) == pytest.approx((wanted.low, wanted.high))
    assert (difference.wins, difference.ties, difference.losses) == (3, 1, 1)
    assert difference.seeds == 5
    assert found.difference(reference) is None


def test_pairing_is_by_seed_and_not_by_place():
    reference = {0: Score(0.5, 1.0), 1: Score(0.7, 1.0), 2: Score(0.9, 1.0)}
    arm = {2: Score(1.0, 1.0), 0: Score(0.5, 1.0)}
    difference = paired(reference, arm)
    assert (difference.wins, difference.ties, difference.losses) == (1, 1, 0)
    assert difference.mean.estimate == pytest.approx(0.05)
    assert paired(reference, {7: Score(1.0, 1.0)}) is None


def test_one_seed_has_a_value_and_no_interval(made_experiment):
    found = read_experiment(made_experiment({"mezo": [0.7], "boosted": [0.8]}))
    mean = found.arms[0].metric.mean
    assert mean.estimate == 0.7 and math.isnan(mean.low) and math.isnan(mean.high)
    assert math.isnan(found.arms[0].metric.sd)
    difference = found.difference(found.arms[1])
    assert difference.wins == 1 and math.isnan(difference.mean.low)
    assert len(found.arms[0].seeds[0].points) == 11  # its records name no member


def test_no_seed_has_nothing():
    assert Spread.of([]) is None


def test_equal_seeds_have_an_interval_without_width():
    spread = Spread.of([0.5, 0.5, 0.5])
    assert (spread.mean.low, spread.mean.high, spread.sd) == (0.5, 0.5, 0.0)


def test_commits_are_those_of_the_events(made_experiment):
    root = made_experiment({"mezo": A[:2], "boosted": B[:2]}, commits={"boosted": [3, 6, 9]})
    found = read_experiment(root)
    assert [run.commits for arm in found.arms for run in arm.seeds] == [(), (), *[(3, 6, 9)] * 2]
    assert [run.kept_commits for arm in found.arms for run in arm.seeds] == [None, None, 1, 1]
    drawn = line(found.arms[1], "forwards")
    assert [x for x, _ in drawn.commits] == pytest.approx([6, 12, 18])
    assert drawn.commits[0][1] == pytest.approx(1.105 - 0.06)  # on the mean line


@pytest.mark.parametrize(("axis", "x"), [("steps", (0, 5, 10)), ("forwards", (0, 10, 20))])
def test_a_line_is_the_mean_in_a_band_from_lowest_to_highest(made_experiment, axis, x):
    (arm,) = read_experiment(made_experiment({"mezo": A})).arms
    drawn = line(arm, axis)
    assert drawn.x == x
    assert drawn.low == pytest.approx((1.0, 0.9, 0.8))
    assert drawn.mean == pytest.approx((1.02, 0.92, 0.82))
    assert drawn.high == pytest.approx((1.04, 0.94, 0.84))


def test_an_arm_that_diverged_has_a_curve_and_no_score(made_experiment):
    root = made_experiment({"mezo": A[:2], "wild": "step 5: loss nan"})
    found = read_experiment(root)
    wild = found.arms[1]
    assert (wild.status, wild.trouble, wild.step) == ("diverged", "step 5: loss nan", 4)
    assert wild.metric is None and found.difference(wild) is None
    assert line(wild, "steps").diverged


def test_without_evaluations_there_is_no_line(made_experiment):
    (arm,) = read_experiment(made_experiment({"mezo": A[:2]}, evaluated=False)).arms
    assert line(arm, "steps") is None
    assert arm.seeds[0].points[0].step == 1


def test_before_it_starts_an_experiment_is_empty(made_experiment):
    root = made_experiment({"mezo": A[:2]}, scored=False)
    for path in sorted((root / "arms").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (arm,) = read_experiment(root).arms
    assert (arm.status, arm.step, arm.metric, arm.seconds_per_step) == ("unfinished", 0, None, None)


def test_the_tables_hold_every_number(made_experiment):
    root = made_experiment({"mezo": A, "boosted": B}, commits={"boosted": [5]})
    found, layout = read_experiment(root), ExperimentLayout(root)
    write_findings(found, layout)
    rows = list(csv.DictReader(layout.results.read_text().splitlines()))
    assert [row["arm"] for row in rows] == ["base", *["mezo"] * 5, *["boosted"] * 5]
    assert rows[0]["seed"] == "" and float(rows[0]["value"]) == 0.5
    assert [float(row["value"]) for row in rows[1:6]] == A  # to the last bit
    assert (rows[6]["commits"], rows[6]["kept_commits"]) == ("1", "1")
    assert rows[6]["forwards"] == "20"
    curves = list(csv.DictReader(layout.curves.read_text().splitlines()))
    assert len(curves) == 2 * 5 * 11
    assert curves[0]["train_loss_perturbed"] == "" and curves[1]["valid_loss"] == ""
    summary = json.loads(layout.summary.read_text())
    assert summary["arms"]["boosted"]["difference"]["wins"] == 3
    assert summary["arms"]["mezo"]["difference"] is None
    assert summary["arms"]["mezo"]["metric"]["mean"] == pytest.approx(sum(A) / 5)


def test_what_is_no_experiment_is_said(tmp_path):
    with pytest.raises(InputError, match=r"no experiment\.json"):
        read_experiment(tmp_path)
    with pytest.raises(InputError, match="there is no directory"):
        read_experiment(tmp_path / "nowhere")
    (tmp_path / "experiment.json").write_text('{"name": 3}')
    with pytest.raises(InputError, match=r"not the record of an experiment(.|\n)*seeds"):
        read_experiment(tmp_path)
