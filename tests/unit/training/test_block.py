"""The configuration block says what a run really uses."""

from dataclasses import replace

import pytest

from weft.training.block import configuration_block
from weft.training.config import RunConfig
from weft.training.job import load_job


@pytest.fixture
def block(rank_one):
    def make(method, *overrides):
        job = load_job(rank_one(method, *overrides))
        return configuration_block(job.resolved, job.layout, job.splits)

    return make


def test_a_boosted_mezo_run_says_all_that_comparisons_hang_on(block):
    said = block(
        "mezo",
        "boost.steps_per_iteration=5",
        "adapter.rank=4",
        "method.directions=2",
        "adapter.factors=b",
        "seed=7",
    )
    assert said["adapter"] == (
        "rank 1 (forced to 1 by boosting, 4 was asked), alpha 16, scale 16, B only"
    )
    assert said["method"] == (
        "mezo: two-sided, 2 directions a step, gaussian, eps 0.001, 4 forwards a step"
    )
    assert said["boosting"].startswith("commit every 5 steps, 2 commits, into the frozen stack")
    assert said["optimiser"] == "sgd, lr 0.0001, constant"
    assert said["length"] == "12 steps of 4 rows = 1.2 epochs, 48 forwards"
    assert said["seed"] == "7"
    assert said["objective"] == "nll of the response's tokens"


@pytest.mark.parametrize(
    ("boost", "said"),
    [
        (("boost.merge_frequency=1",), "commit every epoch (10 steps), 1 commit,"),
        (("boost.steps_per_iteration=99",), "commit never: every 99 steps is not within 12 steps"),
        (("boost.steps_per_iteration=0",), "commit never, 0 commits"),
        (
            ("boost.plateau.patience=2",),
            "commit on a plateau (2 evaluations without a better loss), into",
        ),
        (
            (
                "boost.steps_per_iteration=4",
                "boost.merge=weights",
                "boost.optimiser=keep",
                "boost.warmup_steps=2",
                "boost.shrinkage=0.5",
                "boost.layers_per_round=1",
            ),
            "3 commits, into the weights, optimiser keep, warm-up 2 steps, shrinkage 0.5, "
            "1 layers a round",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_when_rounds_end_and_how_often(boost, said, block):
    assert said in block("backprop", *boost)["boosting"]


def test_a_run_without_boosting_says_nothing_of_it(block):
    said = block("backprop")
    assert "boosting" not in said
    assert said["method"] == "backprop: a forward and a backward a step"
    assert said["length"].endswith("24 forwards")


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"name": "local"}, None),
        ({"name": "vllm", "url": "http://a:8000"}, "vllm at http://a:8000"),
        (
            {"name": "ray", "workers": 3, "threads": 2},
            "ray on this machine: 3 x local, 2 threads each",
        ),
        (
            {"name": "ray", "address": "a:1", "over": {"name": "vllm"}, "urls": ["http://a:2"]},
            "ray at a:1: 1 x vllm, 1 threads each",
        ),
    ],
)
def test_it_says_who_samples_where_that_is_not_the_run_itself(resolved, engine, said):
    job = load_job(resolved("adapter.dropout=0"))
    rewarded = {"method": {"name": "es"}, "objective": {"name": "reward"}, "optimiser": {}}
    config = RunConfig.model_validate({**job.config.model_dump(), **rewarded, "engine": engine})
    elsewhere = replace(job.resolved, config=config)
    assert configuration_block(elsewhere, job.layout, job.splits).get("engine") == said


def test_it_says_what_a_run_starts_from(rank_one):
    job = load_job(rank_one("backprop"))
    config = job.config.model_copy(update={"start": "weft/conciseness"})
    later = replace(job.resolved, config=config)
    assert configuration_block(later, job.layout, job.splits)["start"] == "weft/conciseness"
    assert "start" not in configuration_block(job.resolved, job.layout, job.splits)
