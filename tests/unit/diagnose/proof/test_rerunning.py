"""Two runs of Weft, whatever their method: taken again, and what differs exchanged."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import weft
from weft.core.keys import Key
from weft.diagnose.proof.as_recorded import Side
from weft.diagnose.proof.forward import Engine
from weft.diagnose.proof.rerun import Rerun
from weft.diagnose.proof.settings import Setup
from weft.diagnose.sides.opening import open_evidence
from weft.methods.registry import METHODS
from weft.training import advance
from weft.training.resolve import resolve
from weft.training.state import State
from weft.training.train import train

SHORT = (
    *("data.valid_fraction=0", "data.max_length=128", "adapter.dropout=0", "adapter.rank=1"),
    *("adapter.alpha=4", "steps=6", "eval.every=0", "keep=last"),
    *("boost.steps_per_iteration=4",),
)
OF = {
    "backprop": ("optimiser.lr=1e-2", "batch_size=4"),
    "mezo": ("method.name=mezo", "method.preflight=false", "optimiser.lr=1e-3"),
    "es": (
        *("method.name=es", "method.population=4", "method.samples_per_generation=4"),
        "method.noise.space=factor",
    ),
}


def changed(method: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """One setting each, and the cause that it is."""
    found = {
        "rate": (("optimiser.lr=0.07",), "optimiser"),
        "alpha": (("adapter.alpha=16",), "scale"),
        "seed": (("seed=5",), "seed"),
        "merges": (("boost.steps_per_iteration=2",), "schedule"),
    }
    noise = {"mezo": "method.eps=1e-2", "es": "method.noise.fraction=0.3"}
    return found | ({"noise": ((noise[method],), "settings")} if method in noise else {})


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_base, rows_dir) -> Callable[..., str]:
    """The directory of a run of a method with some settings, made once."""
    made: dict[tuple[str, ...], str] = {}

    def make(method: str, *more: str, again: bool = False) -> str:
        key = (method, *more, str(again))
        if key not in made:
            given = [f"base={small_base}", f"data.path={rows_dir}/train.jsonl", *SHORT]
            root = tmp_path_factory.mktemp("runs") / "run"
            train(resolve("instruct", [*given, *OF[method], *more]), root)
            made[key] = str(root)
        return made[key]

    return make


def tree(root: str) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(root).rglob("*"))
        if path.is_file()
    }


QUICK = ("seed", "noise")
CASES = [
    pytest.param(method, name, marks=() if name in QUICK else pytest.mark.slow)
    for method in METHODS
    for name in changed(method)
]


@pytest.mark.parametrize(("method", "name"), CASES, ids=lambda each: each)
def test_one_changed_setting_is_proven_whatever_the_method(method, name, run):
    settings, label = changed(method)[name]
    a, b = run(method), run(method, *settings)
    before = tree(a), tree(b)
    found = weft.diff(a, b, prove=True)
    assert found.verdict == "different"
    (cause,) = found.causes
    assert (cause.finding.label, cause.confidence) == (label, "proven")
    assert cause.gap_closed > 0.99 and cause.reproduces > 0.99
    assert (tree(a), tree(b)) == before  # nothing is written there


@pytest.mark.slow
def test_alpha_that_keeps_the_scale_of_another_rank_is_a_part_of_it(run):
    four, two = (("boost=null", f"adapter.rank={r}", f"adapter.alpha={4 * r}") for r in (4, 2))
    (cause,) = weft.diff(run("backprop", *four), run("backprop", *two), prove=True).causes
    assert (cause.finding.label, cause.confidence) == ("rank", "proven")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_another_rank_is_proven_whatever_the_method(method, run):
    plain = ("boost=null", "adapter.rank=2")
    found = weft.diff(run(method, *plain), run(method, "boost=null", "adapter.rank=4"), prove=True)
    assert (found.causes[0].finding.label, found.causes[0].confidence) == ("rank", "proven")


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_of_one_configuration_are_the_same(method, run):
    found = weft.diff(run(method), run(method, again=True), prove=True)
    assert found.verdict == "same" and not found.causes
    told = [words for words in found.ruled_out if "taken again from its configuration" in words]
    assert len(told) == 2 and all("bit for bit" in words for words in told)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_changed_settings_are_two_causes(method, run):
    found = weft.diff(run(method), run(method, "seed=5", "adapter.alpha=16"), prove=True)
    assert {(c.finding.label, c.confidence) for c in found.causes} == {
        ("seed", "proven"),
        ("scale", "proven"),
    }


def test_alpha_for_which_the_noise_makes_up_changes_nothing(run):
    """Noise that is measured in weights is as strong whatever the scale."""
    a, b = (run("es", "method.noise.space=weight", f"adapter.alpha={n}") for n in (4, 16))
    found = weft.diff(a, b, prove=True)
    assert found.verdict == "same"
    assert any(words.startswith("both configurations learn the same") for words in found.ruled_out)


@pytest.mark.parametrize("method", METHODS)
def test_run_whose_code_was_changed_is_not_what_its_configuration_says(method, run, monkeypatch):
    """From step 4 on its rates are halved, which no configuration says."""
    honest = advance.Course.rates

    def halved(course: advance.Course, state: State) -> tuple[float, ...]:
        return tuple(x / 2 if state.step >= 3 else x for x in honest(course, state))

    with monkeypatch.context() as patch:
        patch.setattr(advance.Course, "rates", halved)
        b = run(method, "description=changed")
    found = weft.diff(run(method), b, prove=True)
    (told,) = [words for words in found.not_checked if "not what its configuration says" in words]
    assert told.startswith("B ") and "first differs at step 4 (learning rate" in told
    assert any(words.startswith("A, taken again") for words in found.ruled_out)
    assert all(cause.confidence != "proven" or method == "backprop" for cause in found.causes)


def test_base_that_is_another_one_now_is_refused_with_the_reason(run, small_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    a = run("mezo", f"base={base}")
    b = run("mezo", f"base={base}", "seed=5")
    from safetensors.torch import load_file, save_file

    (weights,) = base.glob("*.safetensors")
    tensors = {name: tensor + 0.01 for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    found = weft.diff(a, b, prove=True)
    assert any("A's base is not what the run had" in words for words in found.not_checked)
    assert all(cause.confidence != "proven" for cause in found.causes)


def test_data_that_is_gone_is_refused_with_the_reason(run, rows_dir, tmp_path):
    rows = tmp_path / "rows.jsonl"
    shutil.copy(f"{rows_dir}/train.jsonl", rows)
    a, b = run("es", f"data.path={rows}"), run("es", f"data.path={rows}", "seed=5")
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join(reversed(lines)) + "\n")
    found = weft.diff(a, b, prove=True)
    assert any("A's training data is not what the run had" in x for x in found.not_checked)
    rows.unlink()
    found = weft.diff(a, b, prove=True)
    assert any("the runs were not taken again: A: " in words for words in found.not_checked)


def test_one_adapter_of_several_is_taken_again_alone(run):
    both = run("mezo", "seeds=[0,5]")
    found = weft.diff(f"{both}/members/seed-0", f"{both}/members/seed-5", prove=True)
    assert [(c.finding.label, c.confidence) for c in found.causes] == [("seed", "proven")]


def test_steps_that_are_taken_again_are_those_of_the_run_bit_for_bit(run):
    """Beside the loop of training: the state that the run itself has saved."""
    root = run("mezo")
    side = Side.of("A", open_evidence(root))
    with Rerun(Engine()) as rerun:
        taken = rerun.take(side.setup, 6)
    saved = State.load(Path(root) / "checkpoints" / "step-6", torch.device("cpu"))
    assert torch.equal(taken.state.theta_LP, saved.theta_LP)
    assert all(torch.equal(x, y) for x, y in zip(taken.state.stacks, saved.stacks, strict=True))
    recorded = [json.loads(line) for line in (Path(root) / "steps.jsonl").read_text().splitlines()]
    assert [x["adapter"] for x in taken.lines] == [x["adapter"] for x in recorded]


def test_embeddings_that_are_moved_by_one_unit_are_near_and_not_the_same(run):
    side = Side.of("A", open_evidence(run("backprop")))
    with Rerun(Engine()) as rerun:
        one, other = (rerun.take(side.setup, 3, nudge=n) for n in (None, Key.of(1)))
    x, y = (each.state.theta_LP for each in (one, other))
    assert not torch.equal(x, y) and float((x - y).norm() / x.norm()) < 1e-2


def test_files_of_a_run_are_found_from_above_its_directory(small_base, rows_dir, tmp_path):
    shutil.copy(f"{rows_dir}/train.jsonl", tmp_path / "rows.jsonl")
    config = resolve("instruct", [f"base={small_base}", "data.path=rows.jsonl", *SHORT]).config
    found = Setup.of(config, config.lanes[0], None).found(tmp_path / "runs" / "one")
    assert found.at("data.path") == str((tmp_path / "rows.jsonl").resolve())
    assert found.at("base") == small_base
