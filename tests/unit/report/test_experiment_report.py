"""The page and the tables of an experiment say what was found, and no more than that."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from weft.analysis.experiment import read_experiment
from weft.core.files import write_json
from weft.report.experiment import (
    arms_notes,
    arms_table,
    headline,
    loss_unit,
    remarks,
    scores_notes,
    scores_table,
    write_experiment,
)
from weft.runs.experiment import ExperimentReader
from weft.runs.layout import ExperimentLayout
from weft.runs.timing import TIMES, Breakdown, Phase

VOID = {"meta", "img", "br", "link"}


class Tags(HTMLParser):
    """The tags of a page; each must be closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


LOW, HIGH = [0.70, 0.72, 0.71], [0.80, 0.81, 0.83]


def test_everything_is_written(made_experiment):
    layout = ExperimentLayout(made_experiment({"mezo": LOW, "boosted <b>": HIGH}))
    write_experiment(layout.root)
    files = (layout.results, layout.curves, layout.summary)
    for path in (*files, layout.loss_figure, layout.times_figure):
        assert path.stat().st_size > 0
    source = layout.report.read_text()
    assert "boosted &lt;b&gt;" in source and "boosted <b>" not in source
    assert source.count("data:image/png") == 2
    assert "<script" not in source and "http://" not in source and "https://" not in source
    assert "In what the arms differ" in source
    tags = Tags()
    tags.feed(source)
    tags.close()
    assert tags.open == [] and tags.seen >= {"table", "figure", "pre"}


def test_arms_that_trained_together_count_their_time_once(made_experiment):
    arms = {name: LOW for name in "abc"}
    root = made_experiment(arms, groups=(("a", "b"), ("c",)))
    reader = ExperimentReader(root)
    for arm, seconds in zip(reader.record.arms.values(), (5.0, 7.0, 30.0), strict=True):
        times = Breakdown((Phase("update", seconds, 10),))
        write_json(reader.layout.arm(arm.slug).result(TIMES), times.record())
    assert reader.times() == Breakdown((Phase("update", 37.0, 20),))


def test_a_row_an_arm_the_base_first(made_experiment):
    made = scores_table(read_experiment(made_experiment({"mezo": LOW, "boosted": HIGH})))
    base, mezo, boosted = (dict(enumerate(row)) for row in made.rows)
    assert made.columns[1] == "choice" and "minus mezo" in made.columns
    assert (base[0], base[1], base[2]) == ("base", "0.5000", "-")
    assert (mezo[1], mezo[4], mezo[6]) == ("0.7100", "-", "-")
    assert (boosted[1], boosted[4], boosted[6]) == ("0.8133", "+0.1033", "3/0/0")
    assert boosted[5].startswith("+0.0") and " to +0.1" in boosted[5]


def test_no_interval_is_made_up_for_one_seed(made_experiment):
    found = read_experiment(made_experiment({"mezo": [0.7], "boosted": [0.8]}))
    row = scores_table(found).rows[2]
    assert list(row[1:7]) == ["0.8000", "-", "-", "+0.1000", "-", "1/0/0"]
    assert "One seed" in scores_notes(found)[0]


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"a": LOW, "b": HIGH}, "b scores highest: choice 0.8133 (a 0.7100, base 0.5000)"),
        ({"a": HIGH, "b": LOW}, "a scores highest: choice 0.8133 (base 0.5000)"),
        (
            {"a": LOW, "b": [0.60, 0.90, 0.71]},
            "b scores highest: choice 0.7367 (a 0.7100, base 0.5000); "
            "3 seeds do not tell it from a",
        ),
        ({"a": [0.7], "b": [0.8]}, "b scores highest: choice 0.8000 (a 0.7000, base 0.5000)"),
        ({"a": LOW, "b": "loss nan"}, "a scores highest: choice 0.7100 (base 0.5000)"),
        ({"a": "loss nan", "b": LOW}, "b scores highest: choice 0.7100 (base 0.5000)"),
    ],
)
def test_the_headline_claims_no_more_than_the_seeds_support(made_experiment, arms, said):
    assert headline(read_experiment(made_experiment(arms))) == said


def test_an_arm_that_diverged_is_shown_as_that(made_experiment):
    layout = ExperimentLayout(made_experiment({"mezo": LOW, "wild": "step 5: loss nan"}))
    found = write_experiment(layout.root)
    assert scores_table(found).rows[-1][:3] == ("wild", "diverged", "-")
    assert "wild diverged after step 4: step 5: loss nan" in remarks(found)
    assert "wild diverged" in layout.report.read_text()


def test_arms_that_share_a_forward_are_named_with_their_time(made_experiment):
    found = read_experiment(made_experiment({"mezo": LOW, "boosted": HIGH}))
    assert "(mezo, boosted)" in arms_notes(found)[0]
    assert arms_table(found).rows[0][:4] == ("mezo", "mezo, sgd", "1", "16")


def test_a_seed_that_kept_what_it_started_with_is_named(made_experiment):
    found = read_experiment(made_experiment({"mezo": LOW}, kept=0))
    assert remarks(found) == [
        "mezo: no evaluation was better than the one before the first step for seed 0, 1, 2: what "
        "is kept there is the base"
    ]


def test_commits_that_the_kept_adapters_lack_are_seen(made_experiment):
    root = made_experiment({"mezo": LOW, "boosted": HIGH}, commits={"boosted": [6, 9]})
    cells = [row[8] for row in arms_table(read_experiment(root)).rows]
    assert cells == ["0", "2 (kept 0)"]


def test_a_page_without_evaluations_has_no_figure(made_experiment):
    layout = ExperimentLayout(made_experiment({"mezo": LOW}, evaluated=False))
    write_experiment(layout.root)
    assert not layout.loss_figure.exists() and layout.report.exists()


def test_an_unfinished_experiment_has_a_page(made_experiment):
    layout = ExperimentLayout(made_experiment({"mezo": LOW}, scored=False, status="interrupted"))
    found = write_experiment(layout.root)
    assert headline(found) == "No arm has been scored"
    assert remarks(found) == ["mezo is not finished: it is at step 10"]


def test_the_loss_is_named_for_what_it_is(made_experiment):
    root = made_experiment({"mezo": LOW, "other": HIGH})
    found = read_experiment(root)
    assert loss_unit(found) == "nats a row, over the candidates"
    record = ExperimentReader(root).record
    record.arms["other"].settings["objective"] = {"name": "nll"}
    record.save(ExperimentLayout(root).record)
    assert "different objectives" in loss_unit(read_experiment(root))
