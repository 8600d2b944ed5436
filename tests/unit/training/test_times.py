"""Where the time of real runs went."""

from __future__ import annotations

import pytest

from weft.runs.reader import RunReader
from weft.training.train import Entry, resume, train, train_together

ONCE = {
    "loading data": 1,
    "loading the base": 1,
    "hashing the base": 2,
    "recording": 1,
    "initial population": 1,
    "final evaluation": 1,
    "writing results": 1,
}
STEPS = {"update": 12, "records": 12, "validation": 4, "checkpoint": 4}
OF_METHOD = {
    "backprop": {"loading": 12, "forward and backward": 12},
    "mezo": {"creating adapters": 24, "loading": 12, "evaluation": 12},
}


def counts(root):
    found = RunReader(root).times()
    return {phase.name: phase.count for phase in found.phases if phase.name != "other"}


def stop_at(step):
    def watch(progress):
        if progress.step == step:
            raise KeyboardInterrupt

    return watch


@pytest.mark.parametrize("method", OF_METHOD)
def test_every_phase_of_a_run_is_counted(method, rank_one, tmp_path):
    train(rank_one(method), tmp_path / "run")
    assert counts(tmp_path / "run") == ONCE | STEPS | OF_METHOD[method]


def test_little_of_a_run_is_in_no_phase(resolved, tmp_path):
    train(resolved(), tmp_path / "run")
    found = RunReader(tmp_path / "run").times()
    (share,) = (s for s, phase in zip(found.shares, found.phases, strict=True) if not phase.count)
    assert share < 0.2


def test_preflight_is_setup_and_nothing_in_it_is_a_step_s(rank_one, tmp_path):
    train(rank_one("mezo", "method.preflight=true"), tmp_path / "run")
    assert counts(tmp_path / "run") == ONCE | STEPS | OF_METHOD["mezo"] | {"preflight": 1}


def test_a_resumed_run_counts_all_its_steps(resolved, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(resolved(), tmp_path / "run", watch=stop_at(7))
    before = RunReader(tmp_path / "run").times()
    assert counts(tmp_path / "run")["update"] == 7
    resume(tmp_path / "run")
    after = RunReader(tmp_path / "run").times()
    assert counts(tmp_path / "run")["update"] == 7 + 6, "step 7 was taken twice: saved at 6"
    assert (after.since_step, after.processes) == (0, 2)
    assert after.total > before.total


def test_a_run_that_diverges_tells_where_its_time_went(resolved, tmp_path):
    with pytest.raises(Exception, match=r"not be finite|loss"):
        train(resolved("optimiser.lr=1e30", "optimiser.warmup_ratio=0"), tmp_path / "run")
    assert RunReader(tmp_path / "run").manifest.status == "failed"
    assert {"loading the base", "forward and backward"} <= counts(tmp_path / "run").keys()


def test_runs_that_train_together_say_that_the_seconds_are_those_of_all(rank_one, tmp_path):
    entries = [Entry(rank_one("mezo", f"seed={n}"), tmp_path / str(n)) for n in range(2)]
    train_together(entries)
    found = [RunReader(entry.root).times() for entry in entries]
    assert [its.runs for its in found] == [2, 2]
    assert all(counts(entry.root)["evaluation"] == 12 for entry in entries)
