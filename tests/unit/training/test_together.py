"""Runs that share every forward: each is the run that it would be alone."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from weft.core.errors import InputError
from weft.runs.reader import RunReader
from weft.training.train import Entry, can_share, train, train_together

ADAPTER = "adapter/adapter_model.safetensors"
ARMS = {
    "plain": (),
    "faster": ("optimiser.lr=1e-3",),
    "longer": ("steps=16", "eval.every=8"),
    "boosted": ("boost.steps_per_iteration=5",),
    "seeded": ("seed=3", "boost.steps_per_iteration=4", "boost.layers_per_round=1"),
    "momentum": ("optimiser.momentum=0.9", "keep=last", "eval.every=0"),
}
WILD = ("optimiser.lr=1e38",)


def entries(rank_one, root, arms):
    return [
        Entry(rank_one("mezo", "method.eps=1e-2", *settings), root / name)
        for name, settings in arms.items()
    ]


def stop_at(step):
    def watch(progress):
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return watch


def kill_at(step):
    """As a kill is: nothing is saved or recorded any more."""

    def watch(progress):
        if progress.step == step:
            raise KeyboardInterrupt

    return watch


def bytes_of(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*model.safetensors")}


def whole_and_parts(rank_one, tmp_path, arms, lines):
    """Nothing differs between two folders of runs."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert bytes_of(whole) == bytes_of(parts) != {}
    for name in arms:
        for what in ("steps", "evidence"):
            assert lines(parts / name, what) == lines(whole / name, what), name


@pytest.fixture(scope="module")
def together(rank_one, tmp_path_factory):
    """All arms in one forward, and their outcomes."""
    root = tmp_path_factory.mktemp("together")
    return root, train_together(entries(rank_one, root, ARMS))


def test_each_run_is_an_ordinary_run_of_its_own_length(together, rank_one):
    root, outcomes = together
    assert [outcome.root.name for outcome in outcomes] == list(ARMS)
    for name, outcome in zip(ARMS, outcomes, strict=True):
        assert outcome.finished
        assert outcome.error is None
        steps = 16 if name == "longer" else 12
        assert (outcome.step, outcome.steps) == (steps, steps)
        reader = RunReader(root / name)
        assert reader.done
        assert [each["step"] for each in reader.steps()] == list(range(1, steps + 1))
        assert reader.manifest.events[-1]["unchanged"] is True
    rates = {n: RunReader(root / n).steps()[0]["lr"] for n in ("plain", "faster")}
    assert rates == {"plain": 1e-4, "faster": 1e-3}


@pytest.mark.parametrize("name", ["longer", "seeded", "momentum"])
def test_runs_that_train_together_are_those_that_train_alone(name, together, rank_one, tmp_path):
    root, _ = together
    train(entries(rank_one, tmp_path, {name: ARMS[name]})[0].resolved, tmp_path / name)
    shared, alone = (load_file(folder / name / ADAPTER) for folder in (root, tmp_path))
    assert shared.keys() == alone.keys()
    for tensor in alone:
        torch.testing.assert_close(shared[tensor], alone[tensor], rtol=1e-3, atol=1e-5)
    losses, expected = (
        [each["loss_perturbed"] for each in RunReader(folder / name).steps()]
        for folder in (root, tmp_path)
    )
    assert losses == pytest.approx(expected, rel=1e-5)


def test_a_run_that_trains_together_with_nobody_is_alone_to_the_last_bit(rank_one, lines, tmp_path):
    (entry,) = entries(rank_one, tmp_path, {"one": ("boost.steps_per_iteration=5",)})
    train_together([entry])
    train(entry.resolved, tmp_path / "alone")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "alone") != {}
    assert lines(tmp_path / "one") == lines(tmp_path / "alone")


@pytest.mark.parametrize("interrupt", [stop_at(7), kill_at(7)], ids=["stopped", "killed"])
def test_runs_that_were_interrupted_together_go_on_bit_for_bit(
    interrupt, rank_one, lines, tmp_path
):
    arms = {name: ARMS[name] for name in ("plain", "boosted", "seeded")}
    train_together(entries(rank_one, tmp_path / "whole", arms))
    if interrupt.__qualname__.startswith("kill"):
        with pytest.raises(KeyboardInterrupt):
            train_together(entries(rank_one, tmp_path / "parts", arms), watch=interrupt)
    else:
        found = train_together(entries(rank_one, tmp_path / "parts", arms), watch=interrupt)
        assert [(each.finished, each.step) for each in found] == [(False, 7)] * 3
    again = train_together(entries(rank_one, tmp_path / "parts", arms))
    assert all(outcome.finished for outcome in again)
    resumed = [
        event["step"]
        for event in RunReader(tmp_path / "parts" / "plain").manifest.events
        if event["kind"] == "resumed"
    ]
    assert resumed == [6 if interrupt.__qualname__.startswith("kill") else 7]
    whole_and_parts(rank_one, tmp_path, arms, lines)


def test_a_finished_run_is_left_alone_when_others_go_on(rank_one, lines, tmp_path):
    arms = {"short": ("steps=4",), "long": ("steps=9",)}
    train_together(entries(rank_one, tmp_path / "whole", arms))
    first = train_together(entries(rank_one, tmp_path / "parts", arms), watch=stop_at(7))
    assert [outcome.finished for outcome in first] == [True, False]
    before = bytes_of(tmp_path / "parts" / "short")
    again = train_together(entries(rank_one, tmp_path / "parts", arms))
    assert [(each.finished, each.step) for each in again] == [(True, 4), (True, 9)]
    assert again[0].results == first[0].results
    assert bytes_of(tmp_path / "parts" / "short") == before
    whole_and_parts(rank_one, tmp_path, arms, lines)


def test_a_run_that_diverges_ends_as_failed_and_the_others_go_on(rank_one, tmp_path):
    arms = {"wild": WILD, "plain": (), "boosted": ("boost.steps_per_iteration=4",)}
    outcomes = train_together(entries(rank_one, tmp_path, arms))
    wild, plain, boosted = outcomes
    assert "step 1" in wild.error.problem
    assert not wild.finished
    manifest = RunReader(tmp_path / "wild").manifest
    assert manifest.status == "failed"
    assert [each["kind"] for each in manifest.events] == ["not finite", "failed"]
    assert plain.finished
    assert boosted.finished
    train(entries(rank_one, tmp_path, {"x": ()})[0].resolved, tmp_path / "alone")
    shared, alone = (load_file(tmp_path / name / ADAPTER) for name in ("plain", "alone"))
    for tensor in alone:
        torch.testing.assert_close(shared[tensor], alone[tensor], rtol=1e-3, atol=1e-5)


def test_a_run_that_has_diverged_does_not_hold_the_others_back_when_they_are_killed(
    rank_one, lines, tmp_path
):
    arms = {"wild": WILD, "plain": (), "boosted": ("boost.steps_per_iteration=4",)}
    train_together(entries(rank_one, tmp_path / "whole", arms))
    with pytest.raises(KeyboardInterrupt):
        train_together(entries(rank_one, tmp_path / "parts", arms), watch=kill_at(10))
    wild, *others = train_together(entries(rank_one, tmp_path / "parts", arms))
    assert "step 1" in wild.error.problem
    assert all(outcome.finished for outcome in others)
    for name in ("plain", "boosted"):
        events = RunReader(tmp_path / "parts" / name).manifest.events
        assert [each["step"] for each in events if each["kind"] == "resumed"] == [9]
    whole_and_parts(rank_one, tmp_path, ("plain", "boosted"), lines)


def test_an_evaluation_that_only_one_run_asks_for_needs_rows_all_the_same(
    rank_one, rows_dir, tmp_path
):
    from weft.training.resolve import resolve

    def bare(*settings):
        return resolve(
            "instruct",
            [
                f"base={rank_one('mezo').config.base}",
                f"data.path={rows_dir}/train.jsonl",
                "data.max_length=128",
                "data.valid_fraction=0",
                "adapter.rank=1",
                "steps=2",
                *settings,
            ],
        )

    quiet, curious = bare("eval.every=0", "keep=last"), bare("eval.every=1")
    assert can_share(quiet.config, curious.config)
    with pytest.raises(InputError, match="the data has no validation rows"):
        train_together([Entry(quiet, tmp_path / "a"), Entry(curious, tmp_path / "b")])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        (("seed=4",), True),
        (("optimiser.lr=1", "optimiser.momentum=0.5"), True),
        (("boost.steps_per_iteration=3", "boost.shrinkage=0.5"), True),
        (("steps=5", "eval.every=0", "keep=last"), True),
        (("name=other", "description=another"), True),
        (("boost.merge=weights", "boost.steps_per_iteration=3"), False),
        (("method.eps=1e-2",), False),
        (("method.directions=2",), False),
        (("adapter.alpha=8",), False),
        (("adapter.factors=b",), False),
        (("batch_size=2",), False),
        (("dtype=bfloat16",), False),
        (("data.max_length=64",), False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_runs_can_share_a_forward_where_they_differ_in_what_comes_after_it(
    settings, shares, rank_one
):
    one, other = rank_one("mezo").config, rank_one("mezo", *settings).config
    assert can_share(one, other) == can_share(other, one) == shares
