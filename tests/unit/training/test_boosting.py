"""Boosted runs from start to end, for every method that can be boosted."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from weft.core.errors import InputError
from weft.core.keys import Key
from weft.formats.peft import read_adapter
from weft.methods import registry
from weft.methods.boosting import layers_of_round
from weft.methods.config import MezoConfig
from weft.methods.mezo import MEZO, preflight
from weft.runs.reader import RunReader
from weft.training.job import load_job
from weft.training.state import State
from weft.training.step import validate
from weft.training.train import resume, train

ADAPTER = "adapter/adapter_model.safetensors"
LAST = "adapter_last/adapter_model.safetensors"
METHODS = ("backprop", "mezo")
QUIET = ("eval.every=0", "keep=last")


@pytest.fixture(scope="module")
def plain(rank_one, tmp_path_factory):
    """A method's run without boosting."""
    made = {}

    def make(method):
        if method not in made:
            made[method] = tmp_path_factory.mktemp("plain") / method
            train(rank_one(method), made[method])
        return made[method]

    return make


def stop_at(step):
    def watch(progress):
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return watch


def final_state(root):
    newest = max((root / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))
    return State.load(newest, torch.device("cpu"))


def rank_of(root):
    (rank,) = {slot.rank for slot in read_adapter(root / "adapter").adapter.layout.slots}
    return rank


@pytest.mark.parametrize(
    ("method", "never"),
    [
        ("backprop", ("boost.steps_per_iteration=12",)),
        ("backprop", ("boost.merge_frequency=2",)),
        ("mezo", ("boost.steps_per_iteration=500", "boost.merge_frequency=1")),
        ("mezo", ("boost.steps_per_iteration=0", "boost.merge_frequency=0")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_boosting_that_never_commits_is_a_rank_one_lora_to_the_last_bit(
    method, never, rank_one, plain, lines, events, tmp_path
):
    """The epoch has 10 steps and the run 12, so the end of an epoch lies within it."""
    lora, boosted = plain(method), tmp_path / "run"
    train(rank_one(method, *never), boosted)
    assert not events(boosted, "commit")
    assert lines(boosted) == lines(lora)
    assert lines(boosted, "evidence") == lines(lora, "evidence")
    for name in (ADAPTER, LAST):
        assert (boosted / name).read_bytes() == (lora / name).read_bytes()
    assert torch.equal(final_state(boosted).theta_LP, final_state(lora).theta_LP)


@pytest.mark.parametrize(("method", "every"), [("backprop", 5), ("mezo", 3), ("mezo", 8)])
def test_a_run_agrees_with_the_unboosted_one_exactly_up_to_its_first_commit(
    method, every, rank_one, plain, lines, events, tmp_path
):
    train(rank_one(method, f"boost.steps_per_iteration={every}"), tmp_path / "run")
    whole, found = lines(plain(method)), lines(tmp_path / "run")
    assert found[:every] == whole[:every]
    assert found[every]["loss" if method == "backprop" else "slope"] > 0
    assert found[every:] != whole[every:]
    commits = events(tmp_path / "run", "commit")
    assert [each["step"] for each in commits] == list(range(every, 13, every))
    assert [each["commits"] for each in commits] == list(range(1, 12 // every + 1))


@pytest.mark.parametrize(
    ("boost", "expected"),
    [
        (("boost.merge_frequency=1",), [4, 8]),
        (("boost.merge_frequency=2",), [8]),
        (("boost.merge_frequency=1", "boost.steps_per_iteration=3"), [3, 6, 9]),
        (("boost.merge_frequency=1", "boost.steps_per_iteration=40"), []),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_epochs_commit_only_where_steps_do_not_decide(boost, expected, rank_one, events, tmp_path):
    """Nine steps of ten rows: two epochs and a quarter."""
    settings = (*QUIET, "steps=9", "batch_size=10", "adapter.layers=last 1")
    train(rank_one("backprop", *settings, *boost), tmp_path / "run")
    assert [each["step"] for each in events(tmp_path / "run", "commit")] == expected
    notices = RunReader(tmp_path / "run").manifest.notices
    both = len(boost) == 2
    assert any("`boost.merge_frequency` 1 is not used" in each for each in notices) == both


def test_the_number_of_commits_is_the_rank_of_the_adapter(rank_one, tmp_path):
    """Two commits, and a third round under way; or two, and a round that has not begun."""
    settings = (*QUIET, "boost.steps_per_iteration=2")
    train(rank_one("mezo", "steps=5", *settings), tmp_path / "under way")
    assert rank_of(tmp_path / "under way") == 3
    train(rank_one("mezo", "steps=4", *settings), tmp_path / "at the end")
    assert rank_of(tmp_path / "at the end") == 2


RESTLESS = ("optimiser.lr=0.1", "optimiser.schedule=constant", "eval.rows=4")
"""A rate at which the loss falls, and soon rises."""
BOOSTED = {
    "mezo, momentum kept": (
        "mezo",
        ("optimiser.momentum=0.9", "boost.optimiser=keep", "boost.steps_per_iteration=4"),
    ),
    "mezo, adam, warm-up, layers, shrinkage": (
        "mezo",
        (
            "optimiser.name=adamw",
            "optimiser.lr=1e-3",
            "boost.warmup_steps=3",
            "boost.layers_per_round=1",
            "boost.shrinkage=0.5",
            "boost.steps_per_iteration=4",
        ),
    ),
    "backprop, plateau": (
        "backprop",
        (*RESTLESS, "eval.every=2", "boost.plateau.patience=1"),
    ),
    "mezo, into the weights": ("mezo", ("boost.merge=weights", "boost.steps_per_iteration=4")),
    "mezo, two seeds, plateau, momentum kept": (
        "mezo",
        (
            "seeds=[0,1]",
            "optimiser.lr=0.3",
            "eval.every=2",
            "eval.rows=4",
            "boost.plateau.patience=1",
            "boost.optimiser=keep",
            "optimiser.momentum=0.9",
        ),
    ),
}


@pytest.mark.parametrize("case", BOOSTED)
def test_an_interrupted_boosted_run_goes_on_bit_for_bit(case, rank_one, lines, events, tmp_path):
    """Stopped in the middle of a round, and again right after a commit."""
    method, settings = BOOSTED[case]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(rank_one(method, *settings), whole)
    assert not train(rank_one(method, *settings), parts, watch=stop_at(6)).finished
    assert not resume(parts, watch=stop_at(8)).finished
    assert resume(parts).finished
    for what in ("steps", "evidence"):
        assert lines(parts, what) == lines(whole, what)
    commits, again = (
        [{k: v for k, v in each.items() if k != "time"} for each in events(root, "commit")]
        for root in (whole, parts)
    )
    assert commits
    assert again == commits
    files = sorted(p.relative_to(whole) for p in whole.rglob("adapter_model.safetensors"))
    assert files
    for name in files:
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert RunReader(parts).manifest.fingerprints == RunReader(whole).manifest.fingerprints


def test_a_run_killed_between_checkpoints_goes_on_bit_for_bit(rank_one, lines, events, tmp_path):
    """What came after the newest checkpoint, a commit among it, is taken again."""
    settings = ("boost.steps_per_iteration=4", "checkpoint_every=3")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(rank_one("mezo", *settings), whole)

    def killed_at_five(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(rank_one("mezo", *settings), killed, watch=killed_at_five)
    assert [p.name for p in (killed / "checkpoints").iterdir()] == ["step-3"]
    resume(killed)
    for what in ("steps", "evidence"):
        assert lines(killed, what) == lines(whole, what)
    assert (killed / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()
    assert [each["step"] for each in events(killed, "commit")] == [4, 8, 12]


def test_a_plateau_commits_the_best_evaluation_of_its_round(rank_one, events, tmp_path):
    """And nothing, where that is the round's own start."""
    settings = ("steps=14", "eval.every=2", "boost.plateau.patience=1")
    train(rank_one("backprop", *RESTLESS, *settings), tmp_path / "run")
    reader = RunReader(tmp_path / "run")
    loss = {step: table.means()[0] for step, table in reader.evaluations()}
    ends = [each for each in reader.manifest.events if each["kind"] in ("commit", "restart")]
    assert {each["kind"] for each in ends} == {"commit", "restart"}
    began, before = 0, loss[0]
    for each in ends:
        of_round = [before, *(loss[step] for step in range(began + 2, each["step"] + 1, 2))]
        assert began + 2 * int(np.argmin(of_round)) == each["of_step"] == each["step"] - 2
        assert (each["kind"] == "commit") == (each["of_step"] > began)
        began, before = each["step"], min(of_round)
    assert reader.results("eval")["commits"] >= 1


def test_stack_and_weights_are_one_run_to_rounding_and_leave_the_base(rank_one, events, tmp_path):
    found = {}
    for merge in ("stack", "weights"):
        settings = ("boost.steps_per_iteration=3", f"boost.merge={merge}")
        train(rank_one("backprop", *settings), tmp_path / merge)
        found[merge] = load_file(tmp_path / merge / LAST)
        assert [each["unchanged"] for each in events(tmp_path / merge, "base checked")] == [True]
    for name, tensor in found["stack"].items():
        torch.testing.assert_close(found["weights"][name], tensor, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_b_only_never_moves_a_nor_does_weight_decay(method, rank_one, tmp_path):
    settings = ("adapter.factors=b", "optimiser.weight_decay=10", "steps=3")
    job = load_job(rank_one(method, *QUIET, *settings))
    start = job.layout.factors(job.initial_theta[0])
    train(rank_one(method, *QUIET, *settings), tmp_path / "run")
    found = job.layout.factors(final_state(tmp_path / "run").theta_LP[0])
    for name, (a_rI, b_Or) in found.items():
        assert torch.equal(a_rI, start[name][0])
        assert b_Or.any()


@pytest.mark.parametrize("method", METHODS)
def test_a_round_trains_its_layers_and_no_others(method, rank_one, tmp_path):
    settings = (
        "boost.layers_per_round=1",
        "boost.steps_per_iteration=2",
        "optimiser.weight_decay=1",
        "steps=6",
    )
    job = load_job(rank_one(method, *QUIET, *settings))
    train(rank_one(method, *QUIET, *settings), tmp_path / "run")
    (stack_KP,) = final_state(tmp_path / "run").stacks
    assert len(stack_KP) == 3
    for number, entry_P in enumerate(stack_KP):
        (layer,) = layers_of_round(job.layout, 1, Key.of(0), number)
        for name, (_, b_Or) in job.layout.factors(entry_P).items():
            assert bool(b_Or.any()) == (job.layout.by_name[name].site.layer == layer)


def test_more_layers_a_round_than_are_adapted_is_refused_before_the_run_begins(rank_one, tmp_path):
    with pytest.raises(InputError, match="layers_per_round` is 3, and 2 layers are adapted"):
        train(rank_one("mezo", "boost.layers_per_round=3"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shrinkage_commits_a_part(rank_one, tmp_path):
    """Until the first commit nothing differs, so what is committed is that part of the other's."""
    stacks = {}
    for shrinkage in (1.0, 0.5):
        settings = ("boost.steps_per_iteration=3", f"boost.shrinkage={shrinkage}", "steps=4")
        train(rank_one("backprop", *QUIET, *settings), tmp_path / str(shrinkage))
        stacks[shrinkage] = final_state(tmp_path / str(shrinkage)).stacks[0]
    layout = load_job(rank_one("backprop")).layout
    for name, (a_rI, b_Or) in layout.factors(stacks[0.5][0]).items():
        whole_a, whole_b = layout.factors(stacks[1.0][0])[name]
        assert torch.equal(a_rI, whole_a)
        assert torch.equal(b_Or, 0.5 * whole_b)


def test_a_new_adapter_s_rate_rises_in_its_warm_up_and_the_first_has_the_schedule_s(
    rank_one, lines, tmp_path
):
    settings = ("boost.steps_per_iteration=4", "boost.warmup_steps=4", "steps=9")
    train(rank_one("mezo", *QUIET, *settings, "optimiser.lr=1e-4"), tmp_path / "run")
    factors = [each["lr"] / 1e-4 for each in lines(tmp_path / "run")]
    assert factors == pytest.approx([1] * 4 + [0.25, 0.5, 0.75, 1, 0.25])


@pytest.mark.parametrize("kept", [False, True])
def test_the_optimiser_s_moments_are_forgotten_or_kept_at_a_commit(kept, rank_one, tmp_path):
    settings = ("optimiser.momentum=0.9", "boost.steps_per_iteration=2", "steps=3")
    kind = f"boost.optimiser={'keep' if kept else 'reset'}"
    train(rank_one("mezo", *QUIET, *settings, kind), tmp_path / "run", watch=stop_at(2))
    moments = final_state(tmp_path / "run").moments
    assert bool(moments.first_LP.any()) == kept
    assert moments.updates_L == ((2,) if kept else (0,))


def test_forwards_are_counted_and_the_loss_is_named_for_where_it_was_taken(
    rank_one, plain, lines, tmp_path
):
    exact, two = lines(plain("backprop")), lines(plain("mezo"))
    settings = ("method.sides=one", "method.directions=3", "boost.steps_per_iteration=2")
    train(rank_one("mezo", *QUIET, *settings, "steps=3"), tmp_path / "run")
    one = lines(tmp_path / "run")
    for records, a_step, present, absent in (
        (exact, 2, "loss", "loss_perturbed"),
        (two, 2, "loss_perturbed", "loss"),
        (one, 4, "loss", "loss_perturbed"),
    ):
        assert [each["forwards"] for each in records] == [
            a_step * (step + 1) for step in range(len(records))
        ]
        assert all(present in each and absent not in each for each in records)


@pytest.mark.parametrize(
    ("eps", "said"),
    [(1e-8, "rounding dominates"), (10, "curvature dominates"), (0.1, "curvature"), (1e-3, None)],
)
def test_preflight_on_a_model_warns_where_eps_does_not_suit_it(eps, said, rank_one):
    job = load_job(rank_one("mezo"))
    state = State.fresh(job.initial_theta)
    found = preflight(
        MezoConfig(eps=eps), job.point(state), job.scorer(job.grounds(state.stacks)[0])
    )
    assert (found.warning is None) == (said is None)
    assert said is None or said in found.warning


@pytest.mark.parametrize(("eps", "change"), [("1e-30", None), ("1e-3", 0.0)])
def test_preflight_is_an_event_and_its_warning_a_notice(eps, change, rank_one, events, tmp_path):
    """An eps that moves nothing at all is no crash: what cannot be said is null."""
    settings = ("method.preflight=true", f"method.eps={eps}", "steps=1")
    train(rank_one("mezo", *QUIET, *settings), tmp_path / "run")
    (event,) = events(tmp_path / "run", "preflight")
    assert event["eps"] == float(eps)
    assert event["change_at_half"] == (change if change is None else pytest.approx(change, abs=0.1))
    notices = [n for n in RunReader(tmp_path / "run").manifest.notices if "preflight" in n]
    assert notices == (
        []
        if change is not None
        else ["preflight: at eps 1e-30 the loss does not change at all: eps is too small"]
    )


def test_a_run_that_is_killed_while_it_looks_ahead_looks_again(rank_one, events, tmp_path):
    def killed(*_):
        raise KeyboardInterrupt

    start = rank_one("mezo", *QUIET, "steps=2", "method.preflight=true", "method.eps=10")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.METHODS, "mezo", replace(MEZO, preflight=killed))
        with pytest.raises(KeyboardInterrupt):
            train(start, tmp_path / "killed")
    assert not events(tmp_path / "killed", "preflight")
    resume(tmp_path / "killed")
    train(start, tmp_path / "whole")
    killed, whole = (RunReader(tmp_path / name).manifest for name in ("killed", "whole"))
    assert killed.notices == whole.notices
    assert "preflight: curvature dominates" in whole.notices[-1]
    assert len(events(tmp_path / "killed", "preflight")) == 1


def test_a_round_on_a_shrunken_commit_is_measured_where_it_starts(rank_one, tmp_path):
    """Otherwise its first evaluation would be its best, however bad."""

    def stop_at_commit(progress):
        if any(each.committed for each in progress.ended):
            os.kill(os.getpid(), signal.SIGINT)

    settings = ("boost.plateau.patience=1", "boost.shrinkage=0.5", "eval.every=2", "eval.rows=4")
    start = rank_one("backprop", *RESTLESS, *settings, "steps=14")
    assert not train(start, tmp_path, watch=stop_at_commit).finished
    state = final_state(tmp_path)
    (its,) = state.rounds
    scored = validate(load_job(start), state.stacks, state.theta_LP, rows=4).table.means()
    assert its.started == its.best_step == state.step
    assert [its.best_loss] == scored.tolist()
    assert its.best_loss != state.best[0].loss
